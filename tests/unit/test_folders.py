"""Which folders may hold models: those below the roots, whatever links and dots a path has."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import pytest

from engine.catalog import folders, requirements, sources
from engine.result import Device
from engine.spec import SpecError, parse_spec, prediction_key

CPU = Device(id="cpu", kind="cpu", name="A processor", memory_bytes=2**34, dtypes=("float32", "bfloat16", "float16"))
CONFIG = json.dumps({"model_type": "llama", "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1})
ADAPTER = json.dumps({"peft_type": "LORA", "r": 8, "target_modules": ["q_proj"]})


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only root. Beside it are folders that it does not hold, of which one begins with its name."""
    for name in ("root/model", "root/adapter", "outside/model", "rootless/model"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text(CONFIG)
        (tmp_path / name / "adapter_config.json").write_text(ADAPTER)
        (tmp_path / name / "adapter_model.safetensors").write_bytes(b"")
    monkeypatch.setenv(folders.ROOTS_VARIABLE, str(tmp_path / "root"))
    return tmp_path / "root"


def outside(root: Path) -> list[str]:
    """Ways to name a folder that is not below the root, some of which there is nothing at."""
    (root / "link").symlink_to(root.parent / "outside" / "model")
    (root / "loop").symlink_to(root / "loop")
    return [
        str(root.parent / "outside" / "model"),
        str(root.parent / "rootless" / "model"),
        str(root / ".." / "outside" / "model"),
        str(root / "model" / ".." / ".." / "outside" / "model"),
        str(root / "link"),
        str(root / "link" / "deeper"),
        str(root.parent),
        "/",
        "/no-such-folder/at-all",
        "/proc/self",
        "~nobody-of-this-name/model",
    ]


def problems(**spec: object) -> list[str]:
    try:
        return [str(problem) for problem in requirements.problems(parse_spec(spec), [CPU], None)]
    except SpecError as error:
        return [str(error)]


def test_a_model_is_read_below_a_root_only(root: Path) -> None:
    assert problems(model=str(root / "model")) == []
    for name in outside(root):
        (sentence,) = problems(model=name)
        assert sentence.startswith("model: "), sentence
        assert "is outside of the model folders" in sentence or "is no path here" in sentence, sentence
        assert sources.is_hub_id(name) is False
        for weights in (sources.weights_source, sources.has_safetensors, sources.config_folder):
            with pytest.raises(sources.SourceError):
                weights(name)


def test_a_saved_adapter_is_read_below_a_root_only(root: Path) -> None:
    for name in outside(root):
        (sentence,) = problems(model=str(root / "model"), adapter={"path": name})
        assert sentence.startswith("adapter.path: "), sentence
        assert "is outside of the model folders" in sentence or "is no path here" in sentence, sentence


@pytest.mark.parametrize("field", ["base", "adapter", "out"])
def test_files_are_merged_below_a_root_only(root: Path, field: str) -> None:
    fields = {"base": str(root / "model"), "adapter": str(root / "adapter"), "out": str(root / "out")}
    for name in outside(root):
        (sentence,) = problems(**{"kind": "merge_files", **fields, field: name})
        assert sentence.startswith(f"{field}: "), sentence
        assert "is outside of the model folders" in sentence or "is no path here" in sentence, sentence


def test_nothing_is_told_of_what_is_outside(root: Path) -> None:
    there, not_there = root.parent / "outside" / "model", root.parent / "outside" / "no-model"
    for fields in ({"model": "{}"}, {"model": "gpt2", "adapter": {"path": "{}"}}):
        texts = [json.dumps(fields).replace("{}", str(path)) for path in (there, not_there)]
        one, other = (problems(**json.loads(text)) for text in texts)
        assert [sentence.replace(str(there), str(not_there)) for sentence in one] == other


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "notes.txt"])
def test_a_link_inside_of_a_folder_may_not_lead_out_either(root: Path, name: str) -> None:
    (root / "model" / name).unlink(missing_ok=True)
    (root / "model" / name).symlink_to(root.parent / "outside" / "model" / "config.json")
    assert problems(model=str(root / "model")) == [
        f"model: {root / 'model'} has a link out of the model folders ({name}); copy it there"
    ]


def test_links_within_the_roots_are_followed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the hub's cache has them: from a snapshot to its blobs."""
    blobs = root.parent / "blobs"
    blobs.mkdir()
    (blobs / "abc").write_text(CONFIG)
    (root / "model" / "config.json").unlink()
    (root / "model" / "config.json").symlink_to(blobs / "abc")
    monkeypatch.setenv(folders.ROOTS_VARIABLE, os.pathsep.join([str(root), str(blobs)]))
    assert problems(model=str(root / "model")) == []


def test_the_digest_of_a_file_outside_is_not_taken(root: Path) -> None:
    spec = parse_spec({"model": str(root.parent / "outside" / "model")})
    before = prediction_key(spec)
    (root.parent / "outside" / "model" / "config.json").write_text("{}")
    assert prediction_key(spec) == before
    inside = parse_spec({"model": str(root / "model")})
    before = prediction_key(inside)
    (root / "model" / "config.json").write_text("{}")
    assert prediction_key(inside) != before


def test_by_default_the_roots_are_the_home_folder_and_that_for_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in (None, ""):
        monkeypatch.delenv(folders.ROOTS_VARIABLE) if value is None else monkeypatch.setenv(folders.ROOTS_VARIABLE, "")
        assert folders.roots() == (tmp_path.resolve(), Path(tempfile.gettempdir()).resolve())
        assert folders.inside("~/models/one") == tmp_path.resolve() / "models" / "one"


def test_an_account_whose_home_folder_is_the_whole_machine_has_no_root_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(folders.ROOTS_VARIABLE)
    monkeypatch.setenv("HOME", "/")
    assert folders.roots() == (Path(tempfile.gettempdir()).resolve(),)


def test_roots_that_are_no_whole_paths_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(folders.ROOTS_VARIABLE, "models:/data")
    assert problems(model="/data/model") == [
        "model: PEFT_LAB_MODEL_ROOTS must hold whole paths with ':' between them, not models"
    ]


@pytest.mark.parametrize(
    "name", ["a--b/c", "owner/na..me", "owner/name.git", "owner./name", "owner/-name", "ow\nner/name", "ówner/name"]
)
def test_what_the_hub_does_not_take_as_an_id_is_not_asked_for(name: str) -> None:
    assert not sources.is_hub_id(name)
    assert problems(model=name)[0].startswith("model: unknown model ")


@pytest.mark.parametrize("name", ["a" * 5000, "/" + "a" * 5000, "/" + "a/" * 3000, "a\0b", "/a\0b", "~\0", "./\0"])
def test_a_name_that_no_file_can_have_is_one_sentence(name: str) -> None:
    for spec in ({"model": name}, {"model": "gpt2", "adapter": {"path": name}}):
        (sentence,) = problems(**spec)
        assert len(sentence) < 500
        assert sentence.isprintable()
