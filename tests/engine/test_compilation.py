"""What torch.compile did is counted: a step that breaks its graph or is compiled again does not pass for a good one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from engine.measure.compilation import Compilation


def counts(function: Callable[[Tensor], Tensor], *given: Tensor) -> dict[str, float]:
    """What compiling this function took for these calls; the eager backend spares the C++ compiler."""
    compilation = Compilation()
    compiled = torch.compile(function, backend="eager")
    for tensor in given:
        compiled(tensor)
    return {metric.name: metric.value for metric in compilation.metrics()}


def test_a_whole_graph_that_is_used_twice_has_no_breaks_and_no_recompiles() -> None:
    found = counts(lambda x: x.sin() + 1, torch.ones(3), torch.zeros(3))
    assert found["graph_breaks"] == found["recompiles"] == 0
    assert found["compile_time_s"] > 0


def test_a_broken_graph_is_counted() -> None:
    def broken(x: Tensor) -> Tensor:
        y = x.sin()
        torch._dynamo.graph_break()
        return y + 1

    found = counts(broken, torch.ones(3), torch.zeros(3))
    assert found["graph_breaks"] == 1
    assert found["recompiles"] == 0


def test_code_that_is_compiled_again_is_counted() -> None:
    assert counts(lambda x: x.sin() + 1, torch.ones(3), torch.ones(3, dtype=torch.float64))["recompiles"] == 1
    assert counts(lambda x: x.sin() + 1, torch.ones(3), torch.ones(3, 3), torch.ones(3, 3, 3))["recompiles"] == 2


def test_what_was_compiled_before_does_not_count() -> None:
    function = torch.compile(lambda x: x.cos(), backend="eager")
    function(torch.ones(3))
    function(torch.ones(3, dtype=torch.float64))
    assert counts(lambda x: x.sin(), torch.ones(3))["recompiles"] == 0
