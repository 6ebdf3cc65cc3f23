"""Print what an unmerged adapter costs per token, stock and fused, against the figures that the project promises.

Run by `make bench-inference`, or `python -m tests.benchmarks.bench_inference --cases minimind-26m:float32`. All sides
of one case are measured in one process and interleaved (A B C A B C). Measures requests, not the start of workers.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.measure.environment import WORKER_ENVIRONMENT

RESULTS = Path(__file__).parent / "results"
RANK = 16
CASES = "minimind-26m:float32:64:21,minimind-26m:bfloat16:64:21,tinyllama-1.1b:bfloat16:16:11"
SIDES = ("base", "bare loop", "stock", "fused", "merged")
LARGEST_SHARE = 0.6
LARGEST_CLOCK_ERROR = 0.03


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=CASES, help="model:dtype[:tokens[:rounds]], separated by commas")
    parser.add_argument("--prompt", type=int, default=32, help="tokens in the prompt (default 32)")
    arguments = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in WORKER_ENVIRONMENT.items()):
        # What workers start with has to be there before the first import of torch.
        command = [sys.executable, "-m", "tests.benchmarks.bench_inference", *sys.argv[1:]]
        os.execve(sys.executable, command, os.environ | dict(WORKER_ENVIRONMENT))
    warnings.simplefilter("ignore")
    from engine.measure.environment import environment

    facts = environment()
    print(f"{facts['cpu']}, {facts['cores']} cores, {facts['memory_bytes'] / 2**30:.0f} GiB, {facts['os']}")
    print(", ".join(f"{name} {version}" for name, version in facts["packages"].items()), f"Python {facts['python']}")
    print(f"commit {facts['commit']}{' with changes' if facts['dirty'] else ''}")
    print(f"LoRA r = {RANK}, all-linear, float32 adapter, batch 1, prompt of {arguments.prompt} tokens")
    documents = [_bench(case, arguments.prompt) for case in arguments.cases.split(",")]
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"inference-{time.strftime('%Y%m%d-%H%M%S')}.json"
    path.write_text(json.dumps({"environment": facts, "cases": documents}, indent=1))
    print(f"\nwritten to {path}")


def _bench(case: str, prompt_tokens: int) -> dict[str, Any]:
    from engine.measure.disturbance import BackgroundCpu

    model, dtype, *numbers = case.split(":")
    new_tokens, rounds = (*map(int, numbers), *(32, 9)[len(numbers) :])
    print(f"\n{model}, {dtype}: {new_tokens} new tokens, n = {rounds} rounds after one as warm-up", flush=True)
    with _sides(model, dtype, prompt_tokens, new_tokens) as sides, BackgroundCpu() as background:
        seconds = _interleaved(sides, rounds)
    decode = {name: [step for _, step in seconds[name]] for name in SIDES}
    prefill = {name: [first for first, _ in seconds[name]] for name in SIDES}
    base = statistics.median(decode["base"])
    for name in SIDES:
        low, middle, high = (1e3 * value for value in statistics.quantiles(decode[name], n=4, method="inclusive"))
        print(
            f"  {name:<10} {middle:9.3f} ms/token   IQR {low:.3f}-{high:.3f}   {middle / 1e3 / base:6.3f} of base   "
            f"prefill {1e3 * statistics.median(prefill[name]):8.2f} ms   n={rounds}"
        )
    extra = {name: _median_difference(decode[name], decode["base"]) for name in ("stock", "fused")}
    clock = _median_ratio(decode["base"], decode["bare loop"])
    merged = _median_ratio(decode["merged"], decode["base"])
    quartiles = statistics.quantiles(decode["base"], n=4, method="inclusive")
    noise = (quartiles[2] - quartiles[0]) / quartiles[1]
    print(f"  stock adds {1e3 * extra['stock']:.3f} ms/token, fused {1e3 * extra['fused']:.3f} (medians of rounds)")
    share = background.share
    print(f"  CPU used by others meanwhile: {'unknown' if share is None else f'{share:.1%}'}")
    targets = [
        ("fused's overhead / stock's", extra["fused"] / extra["stock"], LARGEST_SHARE),
        ("clock against a bare loop, off by", abs(clock - 1), LARGEST_CLOCK_ERROR),
        ("merged against base, off by (bound: base's own IQR or 1 %)", abs(merged - 1), max(noise, 0.01)),
    ]
    for name, measured, bound in targets:
        print(f"  {'pass' if measured <= bound else 'MISS'}  {name:<60} {measured:7.3f}  (<= {bound:.3g})")
    return {
        "model": model,
        "dtype": dtype,
        "prompt_tokens": prompt_tokens,
        "new_tokens": new_tokens,
        "decode_token_time_s": decode,
        "prefill_time_s": prefill,
        "targets": [
            {"name": name, "measured": value, "bound": bound, "passed": value <= bound}
            for name, value, bound in targets
        ],
        "background_cpu_share": share,
    }


def _interleaved(
    sides: dict[str, Callable[[], tuple[float, float]]], rounds: int
) -> dict[str, list[tuple[float, float]]]:
    """One unrecorded round as warm-up, then each side once per round; prefill seconds and seconds per decoded token."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    gc.collect()
    gc.freeze()
    for number in range(rounds + 1):
        for name, side in sides.items():
            taken = side()
            if number:
                seconds[name].append(taken)
    gc.unfreeze()
    return seconds


def _median_difference(ours: list[float], base: list[float]) -> float:
    return statistics.median(one - other for one, other in zip(ours, base, strict=True))


def _median_ratio(ours: list[float], base: list[float]) -> float:
    return statistics.median(one / other for one, other in zip(ours, base, strict=True))


class _sides:
    """The sides of one case by name, over one set of base weights, for the time of a block."""

    def __init__(self, model: str, dtype: str, prompt_tokens: int, new_tokens: int) -> None:
        from engine.jobs import inference_variants as variants
        from engine.jobs.inference_loop import random_tokens
        from engine.jobs.module_trees import sharing_copy
        from engine.models import build_model, copied_weight
        from engine.spec import parse_spec

        self._spec: Any = parse_spec(
            {"kind": "inference", "model": model, "dtype": dtype, "adapter": {"rank": RANK}, "strategy": "fused"}
        )
        base = sharing_copy(build_model(self._spec))
        trees = variants.Trees(base, variants.attached(base, self._spec).model)
        self._prompt = random_tokens(base.config.vocab_size, 1, prompt_tokens, 0)
        self._new_tokens = new_tokens
        self._base = base
        self._forms = {
            "base": variants.base_side(trees),
            "stock": variants.adapter_side(trees),
            "merged": variants.merged_side(trees, copied_weight),
        }
        self._fused = variants.strategy_side(trees, self._spec)

    def __enter__(self) -> dict[str, Callable[[], tuple[float, float]]]:
        self._forms["fused"] = self._fused.__enter__()
        measured = {name: self._clocked(side) for name, side in self._forms.items()}
        measured["bare loop"] = self._bare_loop
        return {name: measured[name] for name in SIDES}

    def __exit__(self, *error: Any) -> None:
        self._fused.__exit__(*error)

    def _clocked(self, side: Any) -> Callable[[], tuple[float, float]]:
        import torch

        from engine.jobs.inference_loop import timed_request

        def measure() -> tuple[float, float]:
            times = timed_request(side, self._prompt, self._new_tokens, torch.device("cpu"))
            return times.prefill_s, times.decode_s / (self._new_tokens - 1)

        return measure

    def _bare_loop(self) -> tuple[float, float]:
        """The shortest loop that writes tokens, with nothing of ours in it."""
        import torch

        with torch.inference_mode():
            start = time.perf_counter()
            output = self._base(input_ids=self._prompt, use_cache=True, logits_to_keep=1)
            token = output.logits[:, -1:].argmax(-1)
            first = time.perf_counter()
            for _ in range(self._new_tokens - 1):
                output = self._base(input_ids=token, past_key_values=output.past_key_values, use_cache=True)
                token = output.logits[:, -1:].argmax(-1)
            end = time.perf_counter()
        return first - start, (end - first) / (self._new_tokens - 1)


if __name__ == "__main__":
    main()
