"""Training on a CUDA device, predicted without one: the kernels and defaults of CUDA, and the memory that they take."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from engine.jobs.predict import checked, entry
from engine.models import model_config
from engine.prediction import train
from engine.prediction.cuda_memory import on_device
from engine.prediction.fake import with_depth
from engine.prediction.fake_cuda import FakeCuda
from engine.prediction.stream import Part, Stream, net, peak
from engine.spec import SpecError, TrainSpec, parse_spec

A100, T4, H100 = (8, 0), (7, 5), (9, 0)
CONTEXT = 256


def spec_of(device: str = "cuda:0", model: str = "minimind-26m", **fields: Any) -> TrainSpec:
    """A step of a Llama whose 16 heads of queries share 8 of keys and values; in the tiny one 4 share 2."""
    section = {"context_length": CONTEXT, **fields.pop("train", {})}
    spec = parse_spec({"kind": "train", "model": model, "device": device, "train": section, **fields})
    assert isinstance(spec, TrainSpec)
    return spec


def tiny(device: str = "cpu", **fields: Any) -> TrainSpec:
    """A step of the smallest model, for predictions of all of it."""
    return spec_of(device, "tiny-test", **fields)


def recorded(spec: TrainSpec, capability: tuple[int, int] = A100) -> tuple[tuple[Part, Stream], FakeCuda]:
    cuda = FakeCuda(capability)
    config = with_depth(model_config(spec.model), 2)
    if spec.device == "cpu":
        return train.record(spec, config), cuda
    with cuda.running():
        return train.record(spec.model_copy(update={"device": "cpu"}), config), cuda


def part(history: tuple[Part, Stream], name: str) -> Part:
    (found,) = (part for part in history[1] if part.name == name)
    return found


def kept(history: tuple[Part, Stream]) -> int:
    """Bytes that are alive after the forward pass and were not before."""
    return sum(change.bytes for change in part(history, "forward").changes)


@pytest.mark.parametrize("adapter", [None, {"type": "lora", "options": {"use_dora": True}}], ids=str)
def test_eager_attention_in_float32_takes_the_same_as_on_the_cpu(adapter: dict[str, Any] | None) -> None:
    fields: dict[str, Any] = {"attention": "eager", "adapter": adapter, "dtype": "float32"}
    (cuda, _), (cpu, _) = recorded(spec_of(**fields)), recorded(spec_of("cpu", **fields))
    assert cuda[0] == cpu[0]
    for name in ("forward", "backward"):
        assert part(cuda, name) == part(cpu, name)


def test_adamw_updates_all_tensors_at_once_as_it_does_on_cuda() -> None:
    """A square root of every second moment at the same time; on the CPU, of one after another."""
    (cuda, _), (cpu, _) = recorded(spec_of()), recorded(spec_of("cpu"))
    adapter = [change.bytes for change in cuda[0].changes if change.category == "optimizer state" and change.bytes > 4]
    moments = sum(adapter) // 2
    nothing = Part("before", ())
    assert peak(nothing, (part(cuda, "optimizer"),)).total_bytes >= moments
    assert peak(nothing, (part(cpu, "optimizer"),)).total_bytes < moments


def test_bfloat16_runs_flash_attention_and_keeps_no_scores() -> None:
    history, cuda = recorded(spec_of(adapter=None))
    assert cuda.notes() == ["on compute capability 8.0 PyTorch runs flash attention"]
    eager, _ = recorded(spec_of(adapter=None, attention="eager"))
    scores = 2 * 16 * CONTEXT**2 * 2
    assert kept(eager) - kept(history) > scores / 2


def test_a_card_without_flash_attention_keeps_the_scores_in_float32() -> None:
    old, cuda = recorded(spec_of(adapter=None), T4)
    new, _ = recorded(spec_of(adapter=None))
    assert "plain attention with the whole matrix of scores, because flash attention needs compute" in cuda.notes()[0]
    assert kept(old) - kept(new) > 2 * 16 * CONTEXT**2 * 4


def test_hopper_runs_cudnn() -> None:
    history, cuda = recorded(spec_of(), H100)
    assert cuda.notes() == ["on compute capability 9.0 PyTorch runs cuDNN's attention kernel"]
    assert kept(history) == pytest.approx(kept(recorded(spec_of())[0]), rel=0.01)


def test_flash_attention_takes_memory_of_its_own_while_it_runs_backward() -> None:
    """Beside what cuDNN's kernel returns too, in each of two layers of 16 heads of 32 over 8 of keys and values."""

    def taken(capability: tuple[int, int]) -> Counter[int]:
        changes = part(recorded(spec_of(adapter=None), capability)[0], "backward").changes
        return Counter(change.bytes for change in changes if change.bytes > 0)

    sums_of_rows, queries, keys_and_values = 16 * CONTEXT * 4, 16 * CONTEXT * 32 * 4, 16 * CONTEXT * 32 * 2
    assert taken(A100) - taken(H100) == {sums_of_rows: 2, queries: 2, keys_and_values: 4}


def test_memory_efficient_attention_takes_a_float32_gradient_of_the_queries_while_it_runs_backward() -> None:
    """In each of two layers of 12 heads of 64; nothing else in half precision has these sizes."""
    history, cuda = recorded(spec_of(model="gpt2", adapter=None, dtype="float16"), T4)
    assert "memory-efficient attention" in cuda.notes()[0]
    taken = Counter(change.bytes for change in part(history, "backward").changes)
    queries, sums_of_rows = 12 * CONTEXT * 64 * 4, 12 * CONTEXT * 4
    assert (taken[queries], taken[sums_of_rows]) == (2, 2)


@pytest.mark.parametrize(
    "fields",
    [
        {"adapter": {"dropout": 0.1}, "dtype": "float16"},
        {"strategy": "fused", "train": {"gradient_checkpointing": True, "loss_chunks": 2}},
        {"task": "sequence_classification", "train": {"optimizer": "sgd", "accumulation": 2}},
        {"dtype": "float32", "train": {"optimizer": "adafactor"}},
    ],
    ids=str,
)
def test_a_step_leaves_nothing_behind_and_takes_no_less_of_the_device_than_its_tensors(fields: dict[str, Any]) -> None:
    (before, parts), _ = recorded(spec_of(**fields))
    left = net("after", (before, *parts))
    assert sum(change.bytes for change in left.changes) == pytest.approx(
        sum(change.bytes for change in before.changes), rel=0.01
    )
    found = on_device(before, parts, A100, handles=2, rounds=2)
    tensors = peak(before, parts).total_bytes
    assert tensors < found.peak_allocated_bytes <= found.peak_reserved_bytes < found.total_bytes
    assert found.peak_allocated_bytes - tensors < 64 * 2**20


def test_the_package_flash_attn_need_not_be_here_and_takes_what_flash_attention_takes() -> None:
    found = checked(tiny("cuda:0", adapter=None, attention="flash_attention_2"))
    assert found.peak.bytes == checked(tiny("cuda:0", adapter=None)).peak.bytes
    assert "attention of the package flash-attn takes what PyTorch's own, made from it, takes" in found.notes
    with pytest.raises(SpecError, match=r"^attention: flash_attention_2 needs compute capability 8\.0, not 7\.5"):
        checked(tiny(attention="flash_attention_2", dtype="float16"), "t4")


def test_a_request_for_a_card_predicts_on_it_whatever_the_specs_device() -> None:
    """An H100 has larger workspaces and another attention kernel than a device of which nothing is said."""
    card, bare = entry(tiny(), "h100-80gb"), entry(tiny("cuda:0"))
    kernels = ["on compute capability 9.0 PyTorch runs cuDNN's attention kernel"]
    assert [note for note in card["notes"] if "runs" in note] == kernels
    assert "cuda:0 is not here: taken for a device of compute capability 8.0" in bare["notes"]
    terms = {term["name"]: term["bytes"] for term in card["device_terms"]}
    assert terms["cuBLAS workspaces"] == 2 * 32 * 2**20
    metrics = {metric["name"]: metric["value"] for metric in card["metrics"]}
    assert terms["tensors"] == metrics["peak_bytes"]
    assert metrics["peak_reserved_bytes"] == sum(terms.values()) - terms["CUDA context"]
    assert entry(tiny())["device_terms"] is None


def test_a_card_computes_only_in_its_own_dtypes() -> None:
    assert entry(tiny(), "t4")["error"] == {
        "field": "dtype",
        "text": "dtype: T4 cannot compute in bfloat16; it has float32, float16",
    }


@pytest.mark.parametrize(
    "fields", [{"kind": "inference", "inference": {"prompt_tokens": 32}}, {"kind": "init"}, {"kind": "merge"}], ids=str
)
def test_other_kinds_are_predicted_on_a_card_too(fields: dict[str, Any]) -> None:
    spec = parse_spec({"model": "tiny-test", **fields})
    found = checked(spec, "rtx-4090")  # type: ignore[arg-type]
    for form in found.forms:
        assert form.on_device is not None
        assert form.peak.total_bytes < form.on_device.peak_allocated_bytes <= form.on_device.peak_reserved_bytes
    assert found.needed_bytes > found.peak.total_bytes


def test_a_strategy_that_looks_at_its_device_is_said_to_be_predicted_as_on_a_cpu() -> None:
    notes = [
        " ".join(entry(parse_spec({"kind": "merge", "model": "tiny-test", "strategy": name}), "rtx-4090")["notes"])  # type: ignore[arg-type]
        for name in ("row_blocks", "addmm")
    ]
    assert ["as it works on a CPU" in text for text in notes] == [True, False]


def test_weights_that_move_between_two_devices_are_not_predicted() -> None:
    spec = parse_spec({"model": "tiny-test", "strategy": "gpu_then_cpu"})
    assert entry(spec, "rtx-4090")["error"]["field"] == "strategy"  # type: ignore[arg-type]


def test_an_apple_gpu_keeps_the_scores_where_gradients_are_taken_and_has_no_terms() -> None:
    apple, card = (checked(tiny(adapter=None), name) for name in ("apple-16gb", "rtx-4090"))
    scores_of_a_layer = 4 * CONTEXT**2 * 4
    assert apple.peak.bytes["activations"] - card.peak.bytes["activations"] > scores_of_a_layer
    assert apple.highest.on_device is None
    assert apple.needed_bytes == apple.peak.total_bytes
    assert "what Metal takes beside the tensors is not predicted" in apple.notes


def test_an_adapter_that_makes_its_parameters_anew_in_each_step_is_predicted_on_a_card() -> None:
    found = checked(tiny(adapter={"type": "cpt"}, train={"context_length": 24}), "a100-80gb")
    assert found.highest.on_device is not None
    assert found.highest.on_device.peak_allocated_bytes > found.peak.total_bytes
