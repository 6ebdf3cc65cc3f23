"""One sentence for a model or an adapter whose code cannot run without values. Predicts nothing."""

from __future__ import annotations

import contextlib
import logging
import re
import traceback
from collections.abc import Iterator

from engine import catalog
from engine.spec import FreshAdapter, Measured, SpecError

_LOG = logging.getLogger("torch._subclasses.fake_tensor")
_OPERATION = re.compile(r"aten(?:::|\.)\w+|\w+::\w+|\w+Backward0|split_with_sizes")
# Of sparse tensors the gradient has as many elements as there are values, and fake ones have none. Sizes that were
# read from a tensor do not add up.
_WITHOUT_VALUES = re.compile(
    r"meta tensor|'Meta' backend|fake ?tensor|data.dependent|invalid gradient|split_sizes to sum", re.IGNORECASE
)


@contextlib.contextmanager
def explained(spec: Measured) -> Iterator[None]:
    """Turn what is raised in the block, of an operation that needs values above all, into a sentence on its cause.

    Raises:
        SpecError: naming the operation.
    """
    # It would write the whole trace as well.
    was_disabled, _LOG.disabled = _LOG.disabled, True
    try:
        yield
    except SpecError as error:
        # PEFT's refusals are sentences already; but not what PyTorch says while PEFT attaches.
        if error.__cause__ is None or not _needs_values(error.__cause__):
            raise
        raise _sentence(spec, error.__cause__) from error
    except Exception as error:  # what a model's own code raises where a job does not suit it
        raise _sentence(spec, error) from error
    finally:
        _LOG.disabled = was_disabled


def _needs_values(error: BaseException) -> bool:
    return getattr(error, "func", None) is not None or bool(_WITHOUT_VALUES.search(str(error)))


def _sentence(spec: Measured, error: BaseException) -> SpecError:
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if "/peft/" in frame.filename or "/transformers/" in frame.filename]
    named = str(getattr(error, "func", None) or "") or next(iter(_OPERATION.findall(str(error))), "")
    operation = named or (theirs[-1].name if theirs else "an operation")
    adapter = spec.adapter
    # Errors of the backward pass come from no one's code; models that fail there are not known, adapters are.
    if adapter is None or (theirs and "/peft/" not in theirs[-1].filename):
        field, what = "model", spec.model
    elif isinstance(adapter, FreshAdapter):
        field, what = "adapter.type", catalog.adapter_type(adapter.type).label
    else:
        field, what = "adapter.path", "this adapter"
    if not _needs_values(error):
        return SpecError(field, f"{what} cannot be predicted: {' '.join(str(error).split())[:200].rstrip('.')}")
    return SpecError(
        field, f"{what} cannot be predicted: what {operation} gives depends on values, and a prediction has none"
    )
