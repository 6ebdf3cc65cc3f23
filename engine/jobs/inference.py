"""Measure how fast a model answers without, with and after merging an adapter, and that each form computes the same.

All forms are interleaved in one process. Speed, memory and proof are taken in separate passes. What the forms are is in
``inference_variants``, what a request is in ``inference_loop``.
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from peft import PeftType

from engine import catalog
from engine.jobs import inference_variants as variants
from engine.jobs.inference_loop import Side, forced_logits, peak_bytes, proof_tokens, random_tokens, timed_request
from engine.jobs.inference_proof import Subject, check_same, free_bytes, prove, prove_mixed
from engine.jobs.inference_variants import Several, Trees
from engine.jobs.module_trees import adapted_parameters, sharing_copy, tensor_bytes, weight_bytes_per_token
from engine.jobs.outcome import Outcome
from engine.measure.gpu_utilization import GpuUtilization
from engine.measure.timing import Timer
from engine.models import build_model, copied_weight
from engine.result import Check, Metric, Progress
from engine.spec import InferenceSpec

Report = Callable[[Progress], None]
# Copies of the adapted weights may take this share of free memory: the proof and the requests need some as well.
_SHARE_FOR_MERGED = 0.6


def run(spec: InferenceSpec, report: Report) -> Outcome:
    """Run one inference spec in this process, which should be a fresh one.

    Raises:
        SpecError: if the model cannot be built, or PEFT refuses the adapter or what is asked of it.
    """
    # Imports and module trees leave hundreds of thousands of objects; set apart, they do not slow every collection.
    gc.freeze()
    try:
        return _Inference(spec, report).measure()
    finally:
        gc.unfreeze()


class _Inference:
    """One run: the trees, the forms, and what was found so far."""

    def __init__(self, spec: InferenceSpec, report: Report) -> None:
        self.spec, self.section = spec, spec.inference
        self.device = torch.device(spec.device)
        self.metrics: list[Metric] = []
        self.checks: list[Check] = []
        self._report = report
        self._requests_done, self._requests, self._spent_s = 0, 1, 0.0
        report(Progress("building model"))
        # Frozen like every other form: a head that is not frozen takes another path in PyTorch (see docs/inference.md).
        base = sharing_copy(build_model(spec, report))
        report(Progress("attaching adapter"))
        adapted = None if spec.adapter is None else variants.attached(base, spec).model
        self.trees = Trees(base, adapted)
        self.config = base.config.get_text_config()
        first = getattr(adapted.active_peft_config, "token_indices", None) if adapted is not None else None
        section, vocabulary = self.section, self.config.vocab_size
        # Trained tokens have no effect unless they occur.
        self.prompt = random_tokens(vocabulary, section.batch_size, section.prompt_tokens, spec.seed, first or ()).to(
            self.device
        )
        self.tokens = proof_tokens(vocabulary, section.batch_size, spec.seed, first or ()).to(self.device)

    def measure(self) -> Outcome:
        before = forced_logits(variants.base_side(self.trees), self.tokens)
        with contextlib.ExitStack() as stack:
            sides = self._sides(stack)
            several = self._several() if self.section.adapters > 1 else None
            if several is not None:
                sides["mixed_batch"] = variants.mixed_side(several, self.section.batch_size)
            late = "merged" in self.section.variants and "merged" not in sides
            self._requests = (self.spec.warmup + self.spec.repeats) * (len(sides) + late)
            if "compiled" in sides:
                self._compile(sides["compiled"])
            graphs = variants.compiled_graphs() if "compiled" in sides else 0
            self._timed(sides)
            if "compiled" in sides:
                self._add("recompiles", "count", variants.compiled_graphs() - graphs, "compiled")
            if several is not None:
                self._swaps(several)
            self._memory(sides)
            self._prove(sides, several, late)
            after = forced_logits(variants.base_side(self.trees), self.tokens)
            self.checks.append(check_same("base_unchanged", after, before, "the base model's logits at the start"))
        if late:
            self._merged_late()
        return Outcome(tuple(self.metrics), tuple(self.checks))

    # --- forms ---

    def _sides(self, stack: contextlib.ExitStack) -> dict[str, Side]:
        """The forms in the order they are interleaved in; merged is left out where its weights do not fit."""
        spec, trees = self.spec, self.trees
        wanted = self.section.variants
        sides: dict[str, Side] = {}
        for name, build in (
            ("base", variants.base_side),
            ("adapter_disabled", variants.disabled_side),
            ("adapter", variants.adapter_side),
        ):
            if name in wanted:
                sides[name] = build(trees)
        if spec.strategy != "stock":
            self._report(Progress(f"preparing {spec.strategy}"))
            sides[spec.strategy] = stack.enter_context(variants.strategy_side(trees, spec))
        if "merged" in wanted and self._merged_fits():
            self._report(Progress("merging"))
            sides["merged"] = variants.merged_side(trees, copied_weight)
        return sides

    def _merged_fits(self) -> bool:
        need = tensor_bytes(adapted_parameters(self.trees.adapted)) if self.trees.adapted is not None else 0
        return need <= free_bytes(self.spec) * _SHARE_FOR_MERGED

    def _several(self) -> Several:
        self._report(Progress("attaching more adapters"))
        return variants.attached(self.trees.base, self.spec, self.section.adapters)

    # --- passes ---

    def _compile(self, side: Side) -> None:
        self._report(Progress("compiling"))
        compiled = variants.compile_now(side, self.prompt, self.device)
        self._add("compile_time_s", "s", compiled.seconds, "compiled")
        self._add("graph_breaks", "count", compiled.graph_breaks, "compiled")

    def _timed(self, sides: dict[str, Side]) -> None:
        """Warm-up and repeats, each form once in each; overhead is against the base of the same round."""
        rounds = [None] * self.spec.warmup + list(range(self.spec.repeats))
        for position, repeat in enumerate(rounds):
            words = f"warm-up {position + 1} of {self.spec.warmup}" if repeat is None else _words(repeat, self.spec)
            decode_s = {}
            for name, side in sides.items():
                with self._counted(f"{words}: {name}"):
                    times = timed_request(side, self.prompt, self.section.new_tokens, self.device)
                if repeat is None:
                    continue
                self._add("prefill_time_s", "s", times.prefill_s, name, repeat)
                self._add("request_time_s", "s", times.request_s, name, repeat)
                steps = self.section.new_tokens - 1
                if steps:
                    decode_s[name] = times.decode_s / steps
                    self._add("decode_token_time_s", "s", decode_s[name], name, repeat)
                    self._add("decode_tokens_per_s", "tokens/s", self._rate(decode_s[name]), name, repeat)
            if repeat is not None and "base" in decode_s:
                for name, seconds in decode_s.items():
                    if name != "base":
                        self._add("overhead_ratio", "ratio", seconds / decode_s["base"], name, repeat)

    def _rate(self, step_s: float) -> float:
        return self.section.batch_size / step_s

    def _swaps(self, several: Several) -> None:
        """Seconds to make another adapter the active one, in turn, each as often as there are repeats."""
        self._report(Progress("swapping adapters"))
        names = [name for _ in range(self.spec.repeats) for name in (*several.names[1:], several.names[0])]
        for number, name in enumerate(names):
            with Timer(self.device) as elapsed:
                several.model.set_adapter(name)
            self._add("adapter_swap_time_s", "s", elapsed.seconds, "adapter", number)

    def _memory(self, sides: dict[str, Side]) -> None:
        experts = getattr(self.config, "num_experts_per_tok", None)
        for name, side in sides.items():
            self._report(Progress(f"memory: {name}"))
            # What compiled code allocates inside, nobody can count from outside.
            if name != "compiled":
                self._add("peak_bytes", "bytes", peak_bytes(side, self.prompt, self.section.new_tokens), name)
            model = self.trees.base if name == "adapter_disabled" else side.model
            weights = weight_bytes_per_token(model, self.section.batch_size, experts)
            self._add("weight_bytes_per_token", "bytes", weights, name)
            if self.device.type == "cuda":
                with GpuUtilization(self.device) as busy:
                    timed_request(side, self.prompt, self.section.new_tokens, self.device)
                if busy.share is not None:
                    self._add("gpu_utilization_share", "share", busy.share, name)

    def _prove(self, sides: dict[str, Side], several: Several | None, late: bool) -> None:
        if self.trees.adapted is None:
            return
        self._report(Progress("proof"))
        names = (*(name for name in sides if name != "mixed_batch"), *(("merged",) if late else ()))
        subject = Subject(self.spec, self.trees, sides, self.tokens, copied_weight, self._disabled_is_not_base())
        self.checks += prove(subject, names)
        if several is not None:
            self.checks.append(prove_mixed(subject, several))

    def _merged_late(self) -> None:
        """Merge into the only weights there are, now that nobody else needs them, and measure that."""
        self._report(Progress("merging in place"))
        need = tensor_bytes(adapted_parameters(self.trees.adapted)) if self.trees.adapted is not None else 0
        sides = {"merged": variants.merged_side(self.trees, None)}
        detail = f"measured after the others: a second copy of the adapted weights needs {need} bytes of free memory"
        self.checks.append(Check("merged_interleaved", False, detail))
        self._timed(sides)
        self._memory(sides)
        base = [m for m in self.metrics if (m.name, m.variant) == ("decode_token_time_s", "base")]
        merged = [m for m in self.metrics if (m.name, m.variant) == ("decode_token_time_s", "merged")]
        for one, other in zip(merged, base, strict=False):
            self._add("overhead_ratio", "ratio", one.value / other.value, "merged", one.repeat)

    # --- helpers ---

    def _disabled_is_not_base(self) -> str | None:
        if self.trees.adapted is None:
            return None
        config = self.trees.adapted.active_peft_config
        kind = catalog.adapter_type(str(PeftType(config.peft_type).value).lower())
        return catalog.cannot(kind, config.to_dict(), "disable")

    @contextlib.contextmanager
    def _counted(self, phase: str) -> Iterator[None]:
        """Report a request, and how long those that remain will take at the mean so far."""
        done, left = self._requests_done, max(0, self._requests - self._requests_done)
        eta_s = self._spent_s / done * left if done else None
        self._report(Progress(phase, done, self._requests, eta_s))
        start = time.perf_counter()
        yield
        self._spent_s += time.perf_counter() - start
        self._requests_done += 1

    def _add(self, name: str, unit: str, value: float, variant: str, repeat: int = 0, **more: Any) -> None:
        self.metrics.append(Metric(name, unit, float(value), variant, repeat=repeat, **more))


def _words(repeat: int, spec: InferenceSpec) -> str:
    return f"repeat {repeat + 1} of {spec.repeats}"
