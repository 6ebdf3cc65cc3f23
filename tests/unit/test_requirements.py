from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from engine import catalog
from engine.catalog import sources
from engine.catalog.requirements import LocalModel, model_facts, problems
from engine.result import Device
from engine.spec import parse_spec

CPU = Device("cpu", "cpu", "A processor", 2**34, ("float32", "bfloat16", "float16"))
OLD_CPU = Device("cpu", "cpu", "An old processor", 2**34, ("float32",))
GPU = Device("cuda:0", "cuda", "A GPU", 2**34, ("float32", "bfloat16", "float16"))


def found(spec: dict[str, Any], *devices: Device, groups: Any = None) -> list[str]:
    texts = [str(error) for error in problems(parse_spec(spec), devices or (CPU,), groups)]
    assert all("\n" not in text for text in texts)
    return texts


def only(spec: dict[str, Any], *devices: Device, groups: Any = None) -> str:
    texts = found(spec, *devices, groups=groups)
    assert len(texts) == 1, texts
    return texts[0]


def write_model(folder: Path, **config: Any) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def write_adapter(folder: Path, weights: bool = True, **config: Any) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "target_modules": ["q_proj"], **config})
    )
    if weights:
        (folder / "adapter_model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    return str(folder)


class Hub(BaseHTTPRequestHandler):
    """A hub that answers every request with the status and error code of its server."""

    def do_HEAD(self) -> None:
        self.send_response(self.server.status)  # type: ignore[attr-defined]
        self.send_header("X-Error-Code", self.server.code)  # type: ignore[attr-defined]
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HTTPServer]:
    """A hub on this machine with a cache of its own."""
    from huggingface_hub import constants

    server = HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    use_hub(monkeypatch, tmp_path, f"http://127.0.0.1:{server.server_port}")
    assert constants.ENDPOINT.endswith(str(server.server_port))
    yield server
    server.shutdown()
    server.server_close()


def use_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, address: str) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    sources._why_not_reachable.cache_clear()


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub cache of its own, and a hub address at which nothing answers."""
    use_hub(monkeypatch, tmp_path, "http://127.0.0.1:9")


def test_every_bundled_model_can_run_lora_and_dora_on_a_plain_machine() -> None:
    for entry in catalog.models().values():
        attention = "sdpa" if "sdpa" in entry.attention else "eager"
        assert found({"model": entry.id, "attention": attention}) == []
        dora = {"target_modules": "attention", "options": {"use_dora": True}}
        assert found({"model": entry.id, "attention": attention, "adapter": dora, "strategy": "zero_b_norm"}) == []


def test_every_available_type_can_run_on_tiny_test() -> None:
    for entry in catalog.adapter_types().values():
        texts = found({"model": "tiny-test", "adapter": {"type": entry.id}})
        assert bool(texts) == bool(entry.unavailable_reason), texts


# --- models -----------------------------------------------------------------------------------------------------------


def test_an_unknown_model_is_answered_with_the_nearest() -> None:
    assert only({"model": "tinylama-1.1b"}).startswith(
        "model: unknown model 'tinylama-1.1b'; the nearest is tinyllama-1.1b"
    )


def test_an_inspection_of_an_unknown_model_is_refused_too() -> None:
    assert "the nearest is gpt2" in only({"kind": "inspect", "model": "gtp2"})


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    assert only({"model": str(tmp_path)}) == f"model: the folder {tmp_path} has no config.json"
    assert only({"model": str(tmp_path / "none")}) == f"model: {tmp_path / 'none'} is not a folder"


@pytest.mark.parametrize(
    ("text", "expected"), [("{", "cannot be read"), ("[]", "is not a JSON object"), ("{}", "has no model_type")]
)
def test_a_config_that_is_none_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "config.json").write_text(text)
    assert expected in only({"model": str(tmp_path)})


def test_a_config_of_an_unsupported_type_names_the_nearest(tmp_path: Path) -> None:
    assert "model type 'lama'" in only({"model": write_model(tmp_path, model_type="lama")})
    assert "the nearest that it can is llama" in only({"model": write_model(tmp_path, model_type="lama")})


def test_a_model_that_needs_remote_code_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path, model_type="my-own", auto_map={"AutoConfig": "mine.Config"})
    assert "remote code is never run" in only({"model": folder})


def test_a_local_folder_is_described_by_its_config(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "mine", model_type="llama")
    facts = model_facts(folder)
    assert isinstance(facts, LocalModel)
    assert (facts.label, facts.model_type) == ("mine", "llama")


def test_pretrained_weights_need_safetensors(tmp_path: Path) -> None:
    folder = write_model(tmp_path, model_type="llama")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    assert "has no .safetensors file" in only({"model": folder, "weights": "pretrained"})
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert found({"model": folder, "weights": "pretrained"}) == []
    assert "is bundled without weights" in only({"model": "gpt2", "weights": "pretrained"})


@pytest.mark.usefixtures("offline")
def test_a_hub_id_without_network_is_refused_at_once() -> None:
    start_s = time.monotonic()
    assert only({"model": "nobody/no-such-model-here"}) == (
        "model: nobody/no-such-model-here is not in the local hub cache and the hub cannot be reached"
    )
    assert time.monotonic() - start_s < sources.HUB_TIMEOUT_S + 1


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (401, "GatedRepo", "is gated"),
        (404, "EntryNotFound", "has no config.json"),
        (404, "RepoNotFound", "the hub has no repository some/one"),
        (503, "", "the hub answers with status 503"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(hub: Any, status: int, code: str, expected: str) -> None:
    hub.status, hub.code = status, code
    assert expected in only({"model": "some/one"})


@pytest.mark.usefixtures("offline")
def test_a_hub_id_in_the_local_cache_needs_no_network(tmp_path: Path) -> None:
    commit = "0" * 40
    repository = tmp_path / "hub" / "models--someone--cached"
    write_model(repository / "snapshots" / commit, model_type="gpt2")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    assert found({"model": "someone/cached"}) == []
    assert "no safetensors that can be read here" in only({"model": "someone/cached", "weights": "pretrained"})
    (repository / "snapshots" / commit / "model.safetensors").write_bytes(b"")
    assert found({"model": "someone/cached", "weights": "pretrained"}) == []


@pytest.mark.parametrize("name", ["a/b/c", "../x/y", "a b/c", "owner/", "-x/y", "a/..", "https://hub/x"])
def test_what_is_no_hub_id_is_not_asked_for(name: str) -> None:
    assert not sources.is_hub_id(name)


# --- machine ----------------------------------------------------------------------------------------------------------


def test_a_device_that_is_not_here_is_refused() -> None:
    assert only({"model": "gpt2", "device": "cuda:1"}, CPU, GPU) == (
        "device: cuda:1 is not on this machine, which has cpu, cuda:0"
    )


def test_a_dtype_that_the_device_lacks_is_refused() -> None:
    assert only({"model": "gpt2", "dtype": "float16"}, OLD_CPU) == (
        "dtype: An old processor cannot compute in float16; it has float32"
    )


def test_flash_attention_without_gpu_is_refused() -> None:
    assert "needs a GPU" in only({"model": "gpt2", "attention": "flash_attention_2"})


def test_attention_that_the_model_does_not_have_is_refused() -> None:
    assert only({"model": "gemma-2-9b"}) == "attention: Gemma 2 9B has no sdpa; it has eager, flash_attention_2"


# --- adapters ---------------------------------------------------------------------------------------------------------


def test_target_modules_that_match_nothing_name_the_nearest() -> None:
    assert only({"model": "tinyllama-1.1b", "adapter": {"target_modules": ["q_prj"]}}) == (
        'adapter.target_modules: "q_prj" matches nothing in TinyLlama 1.1B; the nearest is q_proj'
    )


def test_a_rank_above_the_smallest_layer_is_refused() -> None:
    assert only({"model": "tinyllama-1.1b", "adapter": {"rank": 4096}}) == (
        "adapter.rank: 4096 is larger than the smallest matched layer (k_proj, 256 x 2048); at most 256"
    )
    assert found({"model": "tinyllama-1.1b", "adapter": {"rank": 2048, "target_modules": ["q_proj"]}}) == []


def test_a_rank_that_is_no_side_of_a_matrix_may_be_larger() -> None:
    assert found({"model": "tinyllama-1.1b", "adapter": {"type": "vera", "rank": 1024}}) == []


def test_dora_on_fused_experts_is_refused_naming_them() -> None:
    text = only({"model": "mixtral-8x7b", "adapter": {"options": {"use_dora": True}}})
    assert text.startswith("adapter.options.use_dora: DoRA cannot adapt fused experts")
    assert "experts.gate_up_proj" in text


def test_dropout_on_fused_experts_is_refused() -> None:
    assert only({"model": "mixtral-8x7b", "adapter": {"dropout": 0.1}}).startswith("adapter.dropout: must be 0")


def test_a_type_without_conv1d_is_refused_on_gpt2() -> None:
    text = only({"model": "gpt2", "adapter": {"type": "boft"}})
    assert text.startswith("adapter.target_modules: BOFT cannot adapt Conv1D layers")


def test_a_type_for_other_models_is_refused() -> None:
    assert "PEFT has LLaMA-Adapter for the model types" in only(
        {"model": "qwen2.5-0.5b", "adapter": {"type": "adaption_prompt"}}
    )


def test_a_type_that_needs_data_is_refused_with_the_reason() -> None:
    assert "needs trained LoRA adapters to mix" in only({"model": "tiny-test", "adapter": {"type": "xlora"}})


def test_a_size_that_does_not_fit_the_layers_is_refused_with_one_that_does() -> None:
    text = only({"model": "qwen2.5-0.5b", "adapter": {"type": "c3a", "options": {"block_size": 256}}})
    assert text == "adapter.options.block_size: 256 does not divide q_proj (896 x 896); 128 would fit"


def test_a_rank_that_its_divisor_does_not_divide_is_refused() -> None:
    assert "must be a multiple of gralora_k (2)" in only(
        {"model": "tiny-test", "adapter": {"type": "gralora", "rank": 9}}
    )


def test_targets_of_an_unknown_model_are_checked_once_its_groups_are_known(tmp_path: Path) -> None:
    spec = {"model": write_model(tmp_path, model_type="llama"), "adapter": {"target_modules": ["q_prj"]}}
    assert found(spec) == []
    assert "the nearest is q_proj" in only(spec, groups=catalog.model("tiny-test").groups)


# --- strategies -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["zero_b_norm", "factored_norm", "batched_norm", "deferred"])
def test_a_norm_strategy_without_dora_is_refused(strategy: str) -> None:
    assert "only DoRA has" in only({"model": "tiny-test", "strategy": strategy})


def test_a_gpu_strategy_without_gpu_is_refused() -> None:
    spec = {"model": "tiny-test", "strategy": "gpu_then_cpu"}
    assert only(spec) == "strategy: gpu_then_cpu needs a GPU, and this machine has none"
    assert found(spec, CPU, GPU) == []


@pytest.mark.parametrize(("value", "works"), [(True, True), ("gaussian", True), (False, False), ("pissa", False)])
def test_zero_b_norm_needs_b_to_be_zero(value: Any, works: bool) -> None:
    adapter = {"options": {"use_dora": True, "init_lora_weights": value}}
    texts = found({"model": "tiny-test", "strategy": "zero_b_norm", "adapter": adapter})
    assert (texts == []) == works
    assert works or "use factored_norm" in texts[0]


# --- saved adapters ---------------------------------------------------------------------------------------------------


def test_a_saved_adapter_that_fits_is_taken(tmp_path: Path) -> None:
    spec = {
        "model": "tiny-test",
        "adapter": {"path": write_adapter(tmp_path, use_dora=True)},
        "strategy": "zero_b_norm",
    }
    assert found(spec) == []


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"weights": False}, "has no adapter_model.safetensors"),
        ({"peft_type": "LOORA"}, "has the adapter type LOORA; PEFT's nearest is lora"),
        ({"peft_type": None}, "has the adapter type none"),
        ({"peft_type": "XLORA"}, "X-LoRA cannot be measured here"),
        ({"target_modules": ["c_attn"]}, '"c_attn" matches nothing in Tiny test model'),
        ({"target_modules": "(q_proj"}, "is not a regular expression"),
        ({"tokenizer_kwargs": {"trust_remote_code": True}}, "asks for a tokenizer"),
    ],
)
def test_a_saved_adapter_that_cannot_be_loaded_is_refused(tmp_path: Path, config: Any, expected: str) -> None:
    text = only({"model": "tiny-test", "adapter": {"path": write_adapter(tmp_path, **config)}})
    assert text.startswith("adapter.path: ")
    assert expected in text


def test_a_folder_that_holds_no_adapter_is_refused(tmp_path: Path) -> None:
    assert "has no adapter_config.json" in only({"model": "tiny-test", "adapter": {"path": str(tmp_path)}})
    assert "is not a folder" in only({"model": "tiny-test", "adapter": {"path": str(tmp_path / "none")}})
    (tmp_path / "adapter_config.json").write_text("{")
    assert "cannot be read" in only({"model": "tiny-test", "adapter": {"path": str(tmp_path)}})


# --- what an adapter cannot do ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (
            {"kind": "merge", "adapter": {"type": "prompt_tuning"}},
            "adapter.type: Prompt tuning cannot be used for merge: it adds tokens, not weights",
        ),
        ({"kind": "merge", "adapter": {"type": "beft"}}, "adapter.type: BEFT cannot be used for merge: a bias"),
        (
            {"kind": "merge", "adapter": {"options": {"lora_bias": True}}},
            "adapter.type: LoRA cannot be used for merge: a bias can only be merged into one",
        ),
        (
            {"kind": "train", "adapter": {"options": {"alora_invocation_tokens": [1]}}},
            "adapter.type: LoRA cannot be used for train: aLoRA acts only after its invocation tokens",
        ),
        (
            {"kind": "train", "adapter": {"type": "prefix_tuning"}, "train": {"gradient_checkpointing": True}},
            "train.gradient_checkpointing: must be off for Prefix tuning: its keys and values",
        ),
        (
            {"kind": "train", "task": "sequence_classification", "adapter": {"type": "trainable_tokens"}},
            "task: must be causal_lm for Trainable tokens: PEFT leaves the new classification head frozen",
        ),
        (
            {
                "kind": "inference",
                "adapter": {"options": {"use_dora": True}},
                "inference": {"adapters": 2, "batch_size": 2},
            },
            "inference.adapters: must be 1 for DoRA: PEFT refuses adapter_names with DoRA",
        ),
        (
            {"kind": "inference", "adapter": {"type": "loha"}, "inference": {"adapters": 2, "batch_size": 2}},
            "inference.adapters: must be 1 for LoHa: PEFT ignores adapter_names",
        ),
        (
            {"kind": "init", "adapter": {"type": "p_tuning", "adapter_dtype": "bfloat16"}},
            "adapter.adapter_dtype: needs float32 here for P-tuning: PEFT keeps its virtual tokens in float32",
        ),
        (
            {"kind": "train", "adapter": {"adapter_dtype": "bfloat16", "options": {"monteclora_config": {}}}},
            "adapter.adapter_dtype: needs float32 here for MonteCLoRA: PEFT draws MonteCLoRA's samples in float32",
        ),
        (
            {"kind": "train", "dtype": "float16", "adapter": {"type": "delora", "adapter_dtype": "float16"}},
            "adapter.adapter_dtype: needs float32 here for DeLoRA: PEFT divides by B's norm, which is zero",
        ),
    ],
)
def test_what_an_adapter_cannot_do_is_one_sentence_on_the_field_that_asks_for_it(
    spec: dict[str, Any], expected: str
) -> None:
    assert only({"model": "smollm2-135m", **spec}).startswith(expected)


def test_a_bias_may_be_merged_where_the_adapted_layers_have_one() -> None:
    adapter = {"options": {"lora_bias": True}}
    assert found({"kind": "merge", "model": "gpt2", "adapter": adapter}) == []
    spec = {"kind": "merge", "model": "qwen2.5-0.5b", "adapter": {"type": "beft", "target_modules": "qk"}}
    assert found(spec) == []
    assert "not every adapted layer" in only({**spec, "adapter": {"type": "beft", "target_modules": "attention"}})


def test_a_saved_adapter_is_held_to_what_its_form_cannot_do(tmp_path: Path) -> None:
    path = write_adapter(tmp_path, use_dora=True)
    spec = {
        "kind": "inference",
        "model": "smollm2-135m",
        "adapter": {"path": path},
        "inference": {"adapters": 2, "batch_size": 2},
    }
    assert only(spec).startswith("inference.adapters: must be 1 for DoRA")


@pytest.mark.parametrize("init", ["corda", "lora_ga", "loftq"])
@pytest.mark.parametrize("kind", ["init", "merge", "train", "inference"])
def test_a_saved_adapter_that_was_started_by_data_is_refused_in_every_kind(
    tmp_path: Path, init: str, kind: str
) -> None:
    path = write_adapter(tmp_path, init_lora_weights=init)
    text = only({"kind": kind, "model": "smollm2-135m", "adapter": {"path": path}})
    assert text.startswith("adapter.path: ")
    assert "which changed the base weights by data that is not here" in text


def test_a_saved_adapter_that_eva_started_is_taken_because_all_that_eva_changed_is_saved(tmp_path: Path) -> None:
    path = write_adapter(tmp_path, init_lora_weights="eva")
    assert found({"model": "smollm2-135m", "adapter": {"path": path}}) == []


@pytest.mark.parametrize(
    ("adapter", "expected"),
    [
        ({"rank": 5, "options": {"init_lora_weights": "orthogonal"}}, "adapter.rank: must be even"),
        (
            {"options": {"lora_bias": True, "init_lora_weights": "pissa"}},
            "adapter.options.lora_bias: cannot be combined with init_lora_weights",
        ),
        (
            {"target_modules": ["embed_tokens"], "options": {"kasa_config": {}}},
            "adapter.options.kasa_config: does not work on embeddings (embed_tokens)",
        ),
        (
            {"target_modules": ["embed_tokens"], "options": {"init_lora_weights": "olora"}},
            "adapter.options.init_lora_weights: 'olora' does not work on embeddings",
        ),
    ],
)
def test_options_of_lora_that_do_not_go_together_are_refused(adapter: dict[str, Any], expected: str) -> None:
    assert only({"model": "smollm2-135m", "adapter": adapter}).startswith(expected)
