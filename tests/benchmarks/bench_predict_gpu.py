"""Print the memory that predictions say a GPU's allocator reserves beside what PEFT's own benchmark measured on one.

Run by `make bench-predict`, or `python -m tests.benchmarks.bench_predict_gpu` (two minutes, no GPU needed). The
measured figures are of the MetaMathQA comparison in PEFT's repository: Llama-3.2-3B, bfloat16, batch 4, AdamW, on an
L40S with PyTorch 2.13.0 and transformers 5.13.1. How long its longest batch was is not published. That one number is
chosen so that LoRA of rank 32 comes out right; all other rows follow without a choice.
"""

from __future__ import annotations

import warnings
from typing import Any

SOURCE = "https://github.com/huggingface/peft/tree/5d602fdbff04c33c1c4de55cda9d4ae1d7cb7e40/method_comparison/MetaMathQA/results"
CARD = "l40s"
# The benchmark drops longer sequences; what is reserved rises with the length, but in steps and not steadily.
LENGTHS = range(648, 769, 8)
# What the benchmark keeps of the step before: its logits. Mean bytes after a step, less weights and adapter with state.
LOGITS_BYTES = 353_000_000
_QV = {"target_modules": ["q_proj", "v_proj"]}
_LORA = {"type": "lora", "rank": 32, **_QV}
MEASURED: dict[str, tuple[dict[str, Any] | None, int]] = {
    "LoRA, r = 32": (_LORA, 22_292_725_760),
    "LoRA, r = 64": ({**_LORA, "rank": 64}, 22_552_772_608),
    "LoRA, r = 10, MLP": ({"type": "lora", "rank": 10, "target_modules": "mlp"}, 24_698_159_104),
    "DoRA, r = 32": ({**_LORA, "options": {"use_dora": True}}, 24_532_484_096),
    "LN tuning": ({"type": "ln_tuning"}, 21_181_235_200),
    "IA3": ({"type": "ia3", "target_modules": ["k_proj", "v_proj", "down_proj"]}, 23_234_347_008),
    "VeRA, r = 256": ({"type": "vera", "rank": 256, **_QV}, 21_621_637_120),
    "LoHa, r = 32": ({"type": "loha", "rank": 32, **_QV}, 23_907_532_800),
    "LoKr, r = 32": ({"type": "lokr", "rank": 32, "options": {"decompose_factor": 4}, **_QV}, 23_590_862_848),
    "FourierFT": ({"type": "fourierft", "options": {"n_frequency": 1000}, **_QV}, 23_657_971_712),
    "RandLoRA, r = 32": ({"type": "randlora", "rank": 32, **_QV}, 22_785_556_480),
    "MiSS, r = 64": ({"type": "miss", "rank": 64, **_QV}, 20_271_071_232),
    "OFT, r = 32": ({"type": "oft", **_QV}, 22_332_571_648),
    "DeLoRA, r = 32": ({"type": "delora", "rank": 32, **_QV}, 22_351_446_016),
    "HiRA, r = 32": ({"type": "hira", "rank": 32, **_QV}, 23_597_154_304),
    "C3A": ({"type": "c3a", "options": {"block_size": 64}, **_QV}, 22_059_941_888),
    "BOFT": ({"type": "boft", **_QV}, 24_691_867_648),
    "full fine-tuning": (None, 38_868_615_168),
}


def main() -> None:
    warnings.simplefilter("ignore")
    from engine.measure.environment import environment
    from tests.benchmarks import table

    machine = environment()
    print(table.machine_line(machine))
    adapter, wanted = MEASURED["LoRA, r = 32"]
    length = _length(adapter, wanted)
    print(f"longest batch: {length} tokens, from LoRA of rank 32\n")
    print(f"{'reserved at most, GiB':24} {'measured':>10} {'predicted':>10} {'error':>8}")
    rows = []
    for name, (adapter, measured_bytes) in MEASURED.items():
        predicted_bytes = reserved_bytes(adapter, length)
        error = predicted_bytes / measured_bytes - 1
        print(f"{name:24} {measured_bytes / 2**30:10.2f} {predicted_bytes / 2**30:10.2f} {error:+8.1%}", flush=True)
        rows.append({"method": name, "measured_bytes": measured_bytes, "predicted_bytes": predicted_bytes})
    print("written to", table.save("predict-gpu", machine, {"source": SOURCE, "longest_batch": length, "rows": rows}))


def reserved_bytes(adapter: dict[str, Any] | None, length: int) -> int:
    """What a step of the benchmark reserves at most, of batches this long.

    Its batches are padded, so attention has a mask: heads of keys and values are repeated, and the kernel is the
    memory-efficient one.
    """
    from transformers.integrations import sdpa_attention

    from engine import catalog
    from engine.predict import fake_device, history, taken
    from engine.prediction import fake_cuda
    from engine.prediction.attention import Choice
    from engine.prediction.stream import Change, Part
    from engine.spec import TrainSpec, parse_spec
    from engine.strategies.patching import replaced

    section = {"context_length": length, "batch_size": 4}
    spec = parse_spec({"kind": "train", "model": "llama-3.2-3b", "adapter": adapter, "train": section})
    assert isinstance(spec, TrainSpec)
    device, _ = fake_device(spec, catalog.card(CARD))
    assert isinstance(device, fake_cuda.FakeCuda)
    with (
        replaced(sdpa_attention, "use_gqa_in_sdpa", lambda *_: False),
        replaced(fake_cuda, "choose", lambda *_: Choice("efficient", ())),
    ):
        before, parts = history(spec, None, device)
    logits = Change("temporary", "logits of the step before", LOGITS_BYTES)
    return taken(spec, Part(before.name, (*before.changes, logits)), parts, device.capability).peak_reserved_bytes


def _length(adapter: dict[str, Any] | None, wanted_bytes: int) -> int:
    """The length at which what this method reserves is nearest to what was measured."""
    return min(LENGTHS, key=lambda length: abs(reserved_bytes(adapter, length) - wanted_bytes))


if __name__ == "__main__":
    main()
