"""Every init strategy against stock PEFT, on real layers of every kind."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, VeraConfig, get_peft_model
from peft.tuners.lora.dora import DoraLinearLayer
from peft.tuners.tuners_utils import BaseTuner
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from engine import catalog
from engine.measure.tensors import TensorTracker
from engine.strategies import init as strategies
from engine.strategies import proof, row_norms
from engine.strategies.deferred import is_pending
from engine.strategies.overlap import OverlappedNorms

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ON_CPU = ("zero_b_norm", "factored_norm", "batched_norm", "deferred", "staged")
Strategy = Callable[[], AbstractContextManager[None]]


def llama(dtype: torch.dtype = torch.float32, tied: bool = True) -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config).to(dtype).eval()


def gpt2(dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=96, n_embd=48, n_layer=2, n_head=2, n_positions=64)).to(dtype).eval()


LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
MODELS: dict[str, tuple[Callable[[torch.dtype], PreTrainedModel], list[str]]] = {
    "linear": (llama, LINEAR),
    "conv1d": (gpt2, ["c_attn", "c_proj", "c_fc"]),
    "embedding": (lambda dtype: llama(dtype, tied=False), ["embed_tokens", "q_proj"]),
    "tied": (llama, ["embed_tokens", "lm_head"]),
}


def dora(targets: list[str], **fields: object) -> LoraConfig:
    return LoraConfig(r=4, lora_alpha=8, target_modules=targets, use_dora=True, task_type="CAUSAL_LM", **fields)


def attach(model: nn.Module, config: LoraConfig, strategy: str, **named: object) -> PeftModel:
    torch.manual_seed(1)
    with strategies.apply(strategy):
        return get_peft_model(model, copy.deepcopy(config), **named)


def magnitudes(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: layer.values for name, layer in proof.dora_magnitudes(model).items()}


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    return request.param


# --- equality ---------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("name", ON_CPU)
def test_a_fresh_adapter_equals_stocks(name: str, kind: str, dtype: torch.dtype) -> None:
    build, targets = MODELS[kind]
    stock = attach(build(dtype), dora(targets), "stock")
    ours = attach(build(dtype), dora(targets), name)
    layers = proof.dora_magnitudes(ours)
    check = proof.check_magnitudes(
        magnitudes(ours), magnitudes(stock), lambda: {module: layer.reference() for module, layer in layers.items()}
    )
    assert check.passed, check.detail
    stock_state, our_state = stock.state_dict(), ours.state_dict()
    assert stock_state.keys() == our_state.keys()
    for key, tensor in stock_state.items():
        assert our_state[key].dtype == tensor.dtype
        assert our_state[key].shape == tensor.shape
    wanted = {parameter for parameter, tensor in stock.named_parameters() if tensor.requires_grad}
    assert {parameter for parameter, tensor in ours.named_parameters() if tensor.requires_grad} == wanted


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["linear", "conv1d", "embedding"])
@pytest.mark.parametrize("name", ["factored_norm", "batched_norm", "deferred"])
def test_an_adapter_whose_b_is_not_zero_is_within_one_ulp(name: str, kind: str, dtype: torch.dtype) -> None:
    build, targets = MODELS[kind]
    model = attach(build(dtype), dora(targets, init_lora_weights=False), name)
    layers = proof.dora_magnitudes(model)
    assert all(bool(layer.lora_b.any()) and bool(layer.lora_a.any()) for layer in layers.values())
    for layer in layers.values():
        assert proof.ulp_error(layer.values, layer.reference(), dtype) <= 1.0


def test_zero_b_norm_refuses_an_adapter_whose_b_is_not_zero() -> None:
    with pytest.raises(ValueError, match=r"zero_b_norm needs an adapter whose B is zero, .*factored_norm"):
        attach(llama(), dora(["q_proj"], init_lora_weights=False), "zero_b_norm")


@pytest.mark.parametrize("name", sorted(strategies.DORA_ONLY))
def test_strategies_for_dora_refuse_plain_lora(name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} works on DoRA only"):
        attach(llama(), LoraConfig(target_modules=["q_proj"]), name)


def test_the_catalog_and_the_table_offer_the_same_strategies() -> None:
    offered = catalog.strategies("init")
    for strategy in offered:
        assert callable(strategies.apply(strategy.id).__enter__)
        assert ("dora" in strategy.needs) == (strategy.id in strategies.DORA_ONLY)


@pytest.mark.parametrize("name", ON_CPU)
def test_peft_is_as_before_after_the_block_even_when_it_raises(name: str) -> None:
    before = DoraLinearLayer.update_layer, BaseTuner.inject_adapter
    with pytest.raises(KeyError), strategies.apply(name):
        raise KeyError
    assert (DoraLinearLayer.update_layer, BaseTuner.inject_adapter) == before


def test_a_second_adapter_gets_its_own_magnitudes() -> None:
    model = attach(llama(torch.bfloat16), dora(["q_proj"]), "zero_b_norm")
    with strategies.factored_norm():
        model.add_adapter("second", dora(["q_proj", "v_proj"], init_lora_weights=False))
    first, second = proof.dora_magnitudes(model), proof.dora_magnitudes(model, "second")
    assert (len(first), len(second)) == (2, 4)
    for layer in (*first.values(), *second.values()):
        assert proof.ulp_error(layer.values, layer.reference(), torch.bfloat16) <= 1.0


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@pytest.mark.parametrize("name", ["zero_b_norm", "factored_norm", "batched_norm", "deferred"])
def test_a_saved_adapters_own_magnitudes_are_kept(name: str, low_cpu_mem_usage: bool, tmp_path: Path) -> None:
    saved = attach(llama(torch.bfloat16), dora(LINEAR), "stock")
    with torch.no_grad():
        for layer in proof.dora_magnitudes(saved).values():
            layer.layer.weight.mul_(1.5)
    saved.save_pretrained(tmp_path)

    def load() -> PeftModel:
        return PeftModel.from_pretrained(llama(torch.bfloat16), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)

    wanted = load().state_dict()
    with strategies.apply(name):
        loaded = load()
    for key, tensor in loaded.state_dict().items():
        assert not tensor.is_meta
        assert torch.equal(tensor, wanted[key]), key


def test_rows_of_zero_norm_give_a_magnitude_of_zero_and_are_reported() -> None:
    for name in ("stock", *ON_CPU):
        model = llama(torch.bfloat16)
        with torch.no_grad():
            model.model.layers[0].self_attn.q_proj.weight[3:5] = 0
        found = magnitudes(attach(model, dora(["q_proj"]), name))
        check = proof.check_no_zero_norm(found)
        assert not check.passed
        assert "2 rows of zero norm" in check.detail
        assert "layers.0.self_attn.q_proj (2)" in check.detail
        assert all(bool(values.isfinite().all()) for values in found.values())


@pytest.mark.parametrize("name", ["zero_b_norm", "factored_norm", "batched_norm", "deferred"])
def test_layers_that_are_not_ordinary_are_left_to_peft(name: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)
            self.wide = nn.Linear(8, 8).double()

    def built() -> Net:
        torch.manual_seed(0)
        return Net()

    config = LoraConfig(r=4, target_modules=["conv", "wide"], use_dora=True)
    stock = attach(built(), config, "stock")
    ours = attach(built(), config, name)
    for key, tensor in stock.state_dict().items():
        assert torch.equal(tensor, ours.state_dict()[key]), key


# --- the arithmetic ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transposed", [False, True])
def test_row_norms_do_not_overflow_where_squares_do(transposed: bool) -> None:
    weight = torch.full((8, 600), 300.0, dtype=torch.float16)
    norms = row_norms.row_norms(weight.T.contiguous() if transposed else weight, transposed)
    assert torch.equal(norms, torch.full((8,), 300 * 600**0.5).half())


@pytest.mark.parametrize("transposed", [False, True])
def test_norms_after_cancellation_are_exact(transposed: bool, dtype: torch.dtype) -> None:
    """B·A cancels W but for a little: the three terms of the factored sum are then equal to many digits."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(4, 300, generator=generator).to(dtype)
    b = torch.randn(50, 4, generator=generator).to(dtype)
    weight = (b.double() @ a.double() * -2.0).to(dtype)
    weight[7:10] = torch.randn(3, 300, generator=generator).to(dtype)
    stored = weight.T.contiguous() if transposed else weight
    ours = row_norms.shifted_row_norms(stored, a, b, 2.0, transposed)
    exact = torch.linalg.vector_norm(weight.double() + 2.0 * b.double() @ a.double(), dim=1)
    assert proof.ulp_error(ours, exact, dtype) <= 1.0


@pytest.mark.parametrize("rows", ["two segments hold the row", "cross terms hold the row"])
def test_rows_for_which_bfloat16_is_too_coarse_are_summed_in_float32(rows: str) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3000, 1024, generator=generator)
    a, b = torch.randn(8, 1024, generator=generator), torch.randn(3000, 8, generator=generator)
    if rows == "two segments hold the row":
        weight[:, :100] *= 1000
        weight[:, 500:600] *= 1000
        b *= 0.01
    else:
        weight += b @ a
    weight, a, b = weight.bfloat16(), a.bfloat16(), b.bfloat16()
    exact = row_norms.reference_row_norms(weight, a, b, 2.0)
    assert proof.ulp_error(row_norms.shifted_row_norms(weight, a, b, 2.0), exact, torch.bfloat16) <= 0.55


def test_the_reference_is_the_norm_in_float64(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight, a, b = torch.randn(70, 33).to(dtype), torch.randn(4, 33).to(dtype), torch.randn(70, 4).to(dtype)
    exact = torch.linalg.vector_norm(weight.double() + 0.5 * b.double() @ a.double(), dim=1)
    for stored, transposed in ((weight, False), (weight.T.contiguous(), True)):
        torch.testing.assert_close(row_norms.reference_row_norms(stored, a, b, 0.5, transposed), exact)


@pytest.mark.parametrize("transposed", [False, True])
def test_the_factored_norm_takes_five_percent_of_the_weight_where_stock_takes_three_times(transposed: bool) -> None:
    shape = (2048, 5632)
    weight = torch.randn(shape).to(torch.bfloat16)
    outputs, inputs = shape[::-1] if transposed else shape
    a, b = torch.randn(16, inputs).to(torch.bfloat16), torch.randn(outputs, 16).to(torch.bfloat16)
    tracker = TensorTracker()
    tracker.watch([weight, a, b], "given")
    with tracker, torch.no_grad():
        row_norms.shifted_row_norms(weight, a, b, 2.0, transposed)
    assert tracker.peak_extra_bytes <= 0.05 * weight.nbytes
    tracker = TensorTracker()
    tracker.watch([weight, a, b], "given")
    with tracker, torch.no_grad():
        DoraLinearLayer(transposed).get_weight_norm(weight, b @ a, 2.0)
    assert tracker.peak_extra_bytes > 2.5 * weight.nbytes


def test_zero_b_norm_makes_no_full_size_temporary() -> None:
    weight = torch.randn(2048, 2048).to(torch.bfloat16)
    tracker = TensorTracker()
    tracker.watch([weight], "given")
    with tracker:
        row_norms.row_norms(weight)
    assert tracker.peak_extra_bytes <= 2 * 2048 * weight.element_size()


@pytest.mark.parametrize("threads", [1, 2])
def test_overlapped_norms_are_the_same_to_the_bit_and_leave_pytorchs_threads_alone(threads: int) -> None:
    before = torch.get_num_threads()
    weights = [torch.randn(300, 200).to(torch.bfloat16) for _ in range(20)]
    overlapped = OverlappedNorms()
    torch.set_num_threads(threads)
    try:
        for _ in range(2):
            with overlapped:
                found = [overlapped.norms(weight, False) for weight in weights]
            assert torch.get_num_threads() == threads
            assert all(
                torch.equal(norms, row_norms.row_norms(weight)) for norms, weight in zip(found, weights, strict=True)
            )
    finally:
        torch.set_num_threads(before)


def test_what_goes_wrong_beside_or_inside_the_overlap_is_raised_and_ends_it() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    overlapped = OverlappedNorms()
    try:
        with pytest.raises(IndexError, match="Dimension out of range"), overlapped:
            overlapped.norms(torch.ones(5), False)
        with pytest.raises(ZeroDivisionError), overlapped:
            overlapped.norms(torch.ones(5, 5), False).numel() / 0
        assert torch.get_num_threads() == 2
        with overlapped:
            norms = overlapped.norms(torch.ones(4, 4), False)
        assert torch.equal(norms, torch.full((4,), 2.0))
    finally:
        torch.set_num_threads(before)


def test_a_memory_tracker_sees_what_the_overlap_would_have_done_elsewhere() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    weight = torch.randn(3000, 1000).to(torch.float16)
    tracker = TensorTracker()
    tracker.watch([weight], "given")
    try:
        with tracker, OverlappedNorms() as overlapped:
            norms = overlapped.norms(weight, False)
    finally:
        torch.set_num_threads(before)
    assert tracker.peak_extra_bytes > 2**18 > norms.nbytes


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["linear", "conv1d", "embedding"])
def test_the_proofs_logits_are_those_of_pefts_own_forward_pass(kind: str) -> None:
    build, targets = MODELS[kind]
    base = build(torch.float32)
    kept = {id(parameter) for parameter in base.parameters()}
    model = attach(base, dora(targets), "stock")
    proof.perturb(model, kept, 0)
    input_ids = torch.tensor([[1, 2, 3, 4]])
    with torch.no_grad():
        wanted = model(input_ids=input_ids).logits
    torch.testing.assert_close(proof.logits(model, input_ids, kept, in_float32=True), wanted, rtol=1e-4, atol=1e-5)


def test_the_proofs_logits_of_a_bfloat16_model_are_computed_in_float32_and_leave_it_in_bfloat16() -> None:
    base = llama(torch.bfloat16)
    exact = copy.deepcopy(base).float()
    addresses = [parameter.data_ptr() for parameter in base.parameters()]
    input_ids = torch.tensor([[1, 2, 3, 4]])
    ours = proof.logits(base, input_ids, {id(parameter) for parameter in base.parameters()}, in_float32=True)
    with torch.no_grad():
        torch.testing.assert_close(ours, exact(input_ids=input_ids).logits)
    assert [parameter.data_ptr() for parameter in base.parameters()] == addresses
    assert all(parameter.dtype == torch.bfloat16 for parameter in base.parameters())


# --- deferred ---------------------------------------------------------------------------------------------------------


def deferred_layers(model: nn.Module) -> list[nn.Module]:
    return [layer for layer in model.modules() if isinstance(layer, DoraLinearLayer)]


def test_deferred_magnitudes_wait_for_the_first_forward_pass(dtype: torch.dtype) -> None:
    model = attach(llama(dtype), dora(LINEAR), "deferred")
    assert all(is_pending(layer) for layer in deferred_layers(model))
    with torch.no_grad():
        output = model(input_ids=torch.tensor([[1, 2, 3]])).logits
    assert bool(output.isfinite().all())
    layers = deferred_layers(model)
    assert not any(is_pending(layer) for layer in layers)
    assert all(type(layer) is DoraLinearLayer for layer in layers)


def test_deferred_magnitudes_do_not_depend_on_what_b_becomes_meanwhile() -> None:
    config = dora(["q_proj"], init_lora_weights=False)
    wanted = magnitudes(attach(llama(), config, "factored_norm"))
    base = llama()
    kept = {id(parameter) for parameter in base.parameters()}
    model = attach(base, config, "deferred")
    proof.perturb(model, kept, 3)
    assert all(torch.equal(values, wanted[name]) for name, values in magnitudes(model).items())


def test_saving_before_the_first_forward_pass_saves_the_right_magnitudes(tmp_path: Path) -> None:
    wanted = magnitudes(attach(llama(torch.bfloat16), dora(["q_proj"]), "stock"))
    attach(llama(torch.bfloat16), dora(["q_proj"]), "deferred").save_pretrained(tmp_path)
    loaded = magnitudes(PeftModel.from_pretrained(llama(torch.bfloat16), tmp_path))
    assert all(torch.equal(values, wanted[name]) for name, values in loaded.items())


def test_a_copy_of_a_model_with_deferred_magnitudes_computes_its_own() -> None:
    model = attach(llama(), dora(["q_proj"]), "deferred")
    twin = copy.deepcopy(model)
    wanted = magnitudes(model)
    assert all(is_pending(layer) for layer in deferred_layers(twin))
    assert all(torch.equal(values, wanted[name]) for name, values in magnitudes(twin).items())


def test_values_written_into_a_deferred_magnitude_are_kept() -> None:
    model = attach(llama(), dora(["q_proj"]), "deferred")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "magnitude" in name:
                parameter.fill_(7.0)
    assert all(bool((values == 7).all()) for values in magnitudes(model).values())


def test_merging_before_the_first_forward_pass_leaves_the_weights_as_they_were() -> None:
    base = llama()
    wanted = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    merged = attach(base, dora(["q_proj"]), "deferred").merge_and_unload()
    for name, tensor in merged.state_dict().items():
        torch.testing.assert_close(tensor, wanted[name])


# --- staged -----------------------------------------------------------------------------------------------------------


def test_stages_come_one_after_another_each_ready_before_the_next() -> None:
    stages: list[strategies.Stage] = []
    model = llama()
    ready: list[set[str]] = []

    def on_stage(stage: strategies.Stage) -> None:
        stages.append(stage)
        adapted = {name.rpartition(".")[2] for name, module in model.named_modules() if hasattr(module, "lora_A")}
        ready.append(adapted)

    with strategies.staged(on_stage):
        attached = get_peft_model(model, LoraConfig(target_modules=LINEAR))
    assert [stage.name for stage in stages] == LINEAR
    assert [stage.number for stage in stages] == list(range(1, 8))
    assert all(stage.module_count == 2 for stage in stages)
    assert ready == [set(LINEAR[: count + 1]) for count in range(7)]
    times = [stage.elapsed_s for stage in stages]
    assert times == sorted(times)
    assert set(attached.peft_config["default"].target_modules) == set(LINEAR)


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(target_modules="all-linear"),
        LoraConfig(target_modules=r".*\.(q|v)_proj"),
        LoraConfig(target_modules=["q_proj", "v_proj"], layers_to_transform=[1]),
        LoraConfig(target_modules=["q_proj", "v_proj"], exclude_modules=["model.layers.0.self_attn.q_proj"]),
        LoraConfig(target_modules=["q_proj", "v_proj"], modules_to_save=["lm_head"]),
        LoraConfig(target_modules=["q_proj"]),
        IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]),
        VeraConfig(target_modules=["q_proj", "o_proj"]),
    ],
    ids=["preset", "pattern", "one block", "one module excluded", "a module saved", "names", "IA3", "VeRA"],
)
def test_staged_adapts_the_same_modules_as_stock(config: object) -> None:
    stock = get_peft_model(llama(tied=False), copy.deepcopy(config))
    with strategies.staged():
        ours = get_peft_model(llama(tied=False), copy.deepcopy(config))
    assert ours.state_dict().keys() == stock.state_dict().keys()
    for name, parameter in stock.named_parameters():
        assert dict(ours.named_parameters())[name].requires_grad == parameter.requires_grad, name


# --- GPU strategies ---------------------------------------------------------------------------------------------------


def test_gpu_offload_asks_peft_for_its_own_offload(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU the injection fails where PEFT moves a factor to it, which shows that it was asked to."""
    if torch.cuda.is_available():
        model = attach(llama(), dora(["q_proj"]), "gpu_offload")
        assert all(layer.values.device.type == "cpu" for layer in proof.dora_magnitudes(model).values())
    else:
        with pytest.raises((AssertionError, RuntimeError), match=r"(?i)cuda"):
            attach(llama(), dora(["q_proj"]), "gpu_offload")


def test_attaching_elsewhere_brings_the_adapter_back_and_keeps_the_base_weights_memory() -> None:
    """The same code with the CPU as "the other device": what it does with the parameters can be seen without a GPU."""
    model = llama()
    addresses = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    stock = attach(llama(), dora(["q_proj"]), "stock")
    torch.manual_seed(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with strategies.gpu_then_cpu(device):
        ours = get_peft_model(model, dora(["q_proj"]))
    for name, tensor in ours.state_dict().items():
        assert tensor.device.type == "cpu"
        torch.testing.assert_close(tensor, stock.state_dict()[name])
    kept = {name.replace("base_model.model.", "").replace(".base_layer", ""): p for name, p in ours.named_parameters()}
    assert all(kept[name].data_ptr() == address for name, address in addresses.items())
