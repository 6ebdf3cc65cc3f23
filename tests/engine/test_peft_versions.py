"""The engine keeps working with the oldest PEFT that it promises, as far as that can be held without installing it."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from engine import adapters, peft_versions
from engine.models import build_meta
from engine.spec import FreshAdapter, SpecError, parse_spec

ROOT = Path(__file__).resolve().parents[2]
# What PEFT 0.18.1 has of the names that the engine imports from PEFT, looked up with that version installed.
IN_OLDEST = {
    "peft": {"LNTuningModel", "PeftConfig", "PeftModel", "PeftType", "TaskType", "get_peft_model", "peft_model"},
    "peft.mapping": {"PEFT_TYPE_TO_CONFIG_MAPPING", "PEFT_TYPE_TO_TUNER_MAPPING"},
    "peft.tuners._buffer_dict": {"BufferDict"},
    "peft.tuners.lora": {"variants"},
    "peft.tuners.lora.dora": {"DoraEmbeddingLayer", "DoraLinearLayer"},
    "peft.tuners.lora.layer": {"Embedding", "Linear", "ParamWrapper"},
    "peft.tuners.lora.variants": {"DoraEmbeddingVariant", "DoraLinearVariant"},
    "peft.tuners.shira.layer": {"ShiraLayer"},
    "peft.tuners.tuners_utils": {
        "BaseTuner",
        "BaseTunerLayer",
        "_maybe_include_all_linear_layers",
        "check_adapters_to_merge",
    },
    "peft.utils": {"CONFIG_NAME", "SAFETENSORS_WEIGHTS_NAME"},
    "peft.utils.integrations": {"check_deepspeed_zero3_enabled"},
}
# Scripts that write the catalog for the pinned PEFT, not for others.
GENERATORS = {"generate_catalog.py", "generate_adapter_table.py"}


def imported_from_peft() -> set[tuple[str, str]]:
    """What the engine imports by name, less imports whose absence it catches."""
    found = set()
    for path in (ROOT / "engine").rglob("*.py"):
        if path.name in GENERATORS:
            continue
        tree = ast.parse(path.read_text())
        caught = {id(node) for part in ast.walk(tree) if isinstance(part, ast.Try) for node in part.body}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "peft":
                found |= {(str(node.module), alias.name) for alias in node.names if id(node) not in caught}
    return found


def test_every_name_that_the_engine_imports_from_peft_is_in_the_oldest_version() -> None:
    found = imported_from_peft()
    assert len(found) > 20
    assert {(module, name) for module, name in found if name not in IN_OLDEST.get(module, ())} == set()


@pytest.mark.parametrize("version", ["0.18.0", "0.21.2", "0.22.0.dev0", "1.0.0"])
def test_a_peft_of_the_oldest_minor_version_or_newer_is_taken(version: str) -> None:
    peft_versions.require_oldest(version)


@pytest.mark.parametrize("version", ["0.17.1", "0.8.2"])
def test_an_older_peft_is_refused_by_one_sentence_that_names_both_versions(version: str) -> None:
    with pytest.raises(
        peft_versions.PeftTooOld, match=rf"^peft: {version} is installed, PEFT Lab needs 0\.18 or newer$"
    ):
        peft_versions.require_oldest(version)


def test_the_fork_server_asks_for_the_oldest_version_before_it_imports_a_job() -> None:
    source = (ROOT / "engine/preload.py").read_text()
    assert source.index("\nrequire_oldest()") < source.index("import_module(_job)")


def test_forms_that_a_version_does_not_have_are_left_out() -> None:
    module = SimpleNamespace(New=1)
    assert peft_versions.present(module, "New", "Newer") == (1,)  # type: ignore[arg-type]


def test_an_adapter_type_that_came_later_is_one_sentence_on_the_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "PeftType", SimpleNamespace(__members__={"LORA": "LORA"}))
    with pytest.raises(SpecError, match=r"^adapter\.type: VeRA needs a newer PEFT than \d+\.\d+\.\d+"):
        adapters.peft_config(FreshAdapter(type="vera"), adapters.list_groups(build_meta("tiny-test")))


def test_an_option_that_came_later_is_one_sentence_on_the_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters.typing, "get_type_hints", lambda _: {"use_rslora": bool})
    adapter = FreshAdapter(options={"use_dora": True})
    with pytest.raises(SpecError, match=r"^adapter\.options\.use_dora: this field of LoRA needs a newer PEFT than"):
        adapters.peft_config(adapter, adapters.list_groups(build_meta("tiny-test")))


def test_the_page_on_comparing_versions_names_the_oldest_version_and_specs_that_are_valid() -> None:
    page = (ROOT / "docs/comparing-versions.md").read_text()
    specs = re.findall(r"^echo '(\{.*\})' > data/specs/", page, re.MULTILINE)
    assert {parse_spec(json.loads(text)).kind for text in specs} == {"init", "merge", "train", "inference"}
    assert f"It works from PEFT {'.'.join(map(str, peft_versions.OLDEST))} on" in page
