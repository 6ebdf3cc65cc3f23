"""What ``torch.compile`` did: how long it compiled, where it broke the graph, and what it compiled again."""

from __future__ import annotations

from typing import Any

import torch

from engine.result import Metric


class Compilation:
    """Counts from its construction on. Compiled code of before, in this process or on disk, is not used."""

    def __init__(self) -> None:
        torch._dynamo.reset()
        torch.compiler.config.force_disable_caches = True
        self._breaks_before = _graph_breaks()
        self._known = len(_compilations())

    def metrics(self) -> list[Metric]:
        """Seconds of compilation so far, graph breaks and recompilations."""
        done = _compilations()[self._known :]
        return [
            Metric("compile_time_s", "s", sum(entry.duration_us or 0 for entry in done) / 1e6),
            Metric("graph_breaks", "count", _graph_breaks() - self._breaks_before),
            Metric("recompiles", "count", sum(_is_recompilation(entry) for entry in done)),
        ]


def _compilations() -> list[Any]:
    # Imported only when something is compiled: it takes a second, and the fork server imports this module.
    from torch._dynamo.utils import get_compilation_metrics

    return get_compilation_metrics()


def _graph_breaks() -> int:
    from torch._dynamo.utils import counters

    return sum(counters["graph_break"].values())


def _is_recompilation(entry: Any) -> bool:
    """Ids are "frame/attempt": an attempt above 0 compiles code again whose guards did not hold."""
    _, _, attempt = (entry.compile_id or "0/0").rpartition("/")
    return entry.is_forward is not False and attempt.partition("_")[0] not in ("", "0")
