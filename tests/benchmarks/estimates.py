"""What two common rules say of a job's memory, to hold predictions against: accelerate's tool, and numbers times bytes.

Neither knows of adapters' activations or of the context's length. Allocates no weights.
"""

from __future__ import annotations

import torch
from accelerate import init_empty_weights
from accelerate.commands.estimate import estimate_training_usage
from accelerate.utils import calculate_maximum_sizes
from transformers import AutoModel

from engine.models import build_meta, model_config
from engine.spec import InferenceSpec, TrainSpec

# The tool has no column for bfloat16; float16 takes as much.
_COLUMNS = {"float32": "float32", "bfloat16": "float16", "float16": "float16"}
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def accelerate_bytes(spec: TrainSpec | InferenceSpec) -> int:
    """What `accelerate estimate-memory` prints: "Training using Adam" for training, "Total Size" for a request.

    Done as its command does it (``accelerate.commands.estimate.gather_data``), but for asking the hub for the model.
    """
    with init_empty_weights():
        model = AutoModel.from_config(model_config(spec.model), dtype=torch.float32)
    total_bytes, _ = calculate_maximum_sizes(model)
    column = _COLUMNS[spec.dtype]
    if isinstance(spec, TrainSpec):
        return int(max(estimate_training_usage(total_bytes, column).values()))
    return int(total_bytes // (2 if column == "float16" else 1))


def formula_bytes(spec: TrainSpec | InferenceSpec, trained: int) -> int:
    """Parameters times their bytes; for each of the ``trained`` ones also a gradient and Adam's two states."""
    size = _BYTES[spec.dtype]
    weights_bytes = sum(parameter.numel() for parameter in build_meta(spec.model).parameters()) * size
    if spec.adapter is None:
        return weights_bytes + 3 * trained * size
    return weights_bytes + 4 * trained * _BYTES[spec.adapter.adapter_dtype]
