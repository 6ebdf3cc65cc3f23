"""What the fork server imports before its first worker: the libraries and the modelling code, and nothing that runs.

Importing takes seconds, a fork milliseconds. Must start no thread and touch no GPU: workers are forked from here.
"""

import gc
import importlib
import sys

import torch

# Where it is installed, importing peft imports bitsandbytes, and that starts CUDA on a machine that has it. No worker
# forked from here could use the GPU then, so peft is not to find it; quantised bases on a GPU need started workers.
if torch.cuda.is_available():
    sys.modules.setdefault("bitsandbytes", None)  # type: ignore[arg-type]

import peft  # noqa: F401
import transformers  # noqa: F401

import engine.worker  # noqa: F401
from engine import catalog
from engine.jobs import JOBS
from engine.measure import environment
from engine.peft_versions import require_oldest

require_oldest()
for _job in JOBS.values():
    importlib.import_module(_job)
for _model_type in sorted({entry.config["model_type"] for entry in catalog.models().values()}):
    importlib.import_module(f"transformers.models.{_model_type}.modeling_{_model_type}")
environment.preload()
if sys.modules.get("bitsandbytes", ...) is None:
    del sys.modules["bitsandbytes"]
# What was imported stays; workers need not look through it at every collection, nor copy its pages by touching them.
gc.collect()
gc.freeze()

#: Read by the first worker: Python swallows the error when a preload fails to import.
LOADED = True
