"""The command line: one JSON document on stdout, one sentence for bad input, exit status 0, 1 or 2."""

from __future__ import annotations

import gzip
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from engine.__main__ import main
from engine.spec import parse_spec, spec_hash
from tests.engine.conftest import Engine

QUICK = {"model": "tiny-test", "repeats": 1, "warmup": 0}


def process(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """The command as a shell starts it."""
    command = [sys.executable, "-m", "engine", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    path = tmp_path_factory.mktemp("spec") / "spec.json"
    path.write_text(json.dumps(QUICK))
    return process("measure", str(path))


def test_measure_prints_one_result_document_and_its_progress_elsewhere(
    measured: subprocess.CompletedProcess[str],
) -> None:
    document = json.loads(measured.stdout)
    assert measured.returncode == 0
    assert document["state"] == "succeeded"
    assert document["spec"]["adapter"]["rank"] == 16
    assert " s  " in measured.stderr


def test_the_result_document_has_the_fields_of_the_contract(measured: subprocess.CompletedProcess[str]) -> None:
    document = json.loads(measured.stdout)
    assert {"state", "spec", "spec_hash", "metrics", "checks", "samples", "environment", "error"} <= set(document)
    assert set(document["metrics"][0]) == {"name", "unit", "variant", "x", "repeat", "value"}
    assert set(document["checks"][0]) == {"name", "passed", "detail"}


def test_an_imported_result_is_stored_once_and_exported_whole(
    measured: subprocess.CompletedProcess[str], engine: Engine, tmp_path: Path, home: Path
) -> None:
    path = tmp_path / "result.json"
    path.write_text(measured.stdout)
    first, second = (json.loads(engine("import", str(path)).stdout)[0] for _ in range(2))
    assert first["created"] is True
    assert second == {**first, "created": False}
    exported = json.loads(engine("export", str(first["run_id"])).stdout)
    original = json.loads(measured.stdout)
    assert exported["spec"] == original["spec"]
    key = ["name", "variant", "x", "repeat"]

    def order(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return sorted(metrics, key=lambda metric: [str(metric[name]) for name in key])

    assert order(exported["metrics"]) == order(original["metrics"])


def test_inspect_lists_modules_with_shapes_counts_and_added_parameters(engine: Engine) -> None:
    done = engine("inspect", "gpt2")
    document = json.loads(done.stdout)
    assert done.returncode == 0
    attention = next(group for group in document["groups"] if group["name"] == "c_attn")
    assert (attention["in_features"], attention["out_features"], attention["count"]) == (768, 2304, 12)
    assert document["presets"]["all-linear"]


def test_the_catalog_names_models_types_strategies_and_devices(engine: Engine) -> None:
    document = json.loads(engine("catalog").stdout)
    assert "tinyllama-1.1b" in document["models"]
    assert "lora" in document["adapter_types"]
    assert next(entry["id"] for entry in document["strategies"]["init"]) == "stock"
    assert document["devices"][0]["id"] == "cpu"


def lora(**fields: Any) -> dict[str, Any]:
    return {**QUICK, "adapter": fields}


BAD_SPECS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "not JSON": ("{", ("spec:", "JSON")),
    "not an object": ("[]", ("spec:",)),
    "unknown kind": ({"kind": "mege"}, ("kind:",)),
    "unknown field": ({**QUICK, "colour": 1}, ("colour:",)),
    "unknown model": ({"model": "tinylama-1.1b"}, ("model:", "tinyllama-1.1b")),
    "folder without config": ({"model": "."}, ("model:", "config.json")),
    "folder outside of the roots": ({"model": "/etc"}, ("model:", "PEFT_LAB_MODEL_ROOTS")),
    "unknown adapter type": (lora(type="lorra"), ("adapter.type:", "lora")),
    "rank 0": (lora(rank=0), ("adapter.rank:",)),
    "rank larger than the layer": (lora(rank=4096), ("adapter.rank:",)),
    "alpha not finite": ('{"model": "tiny-test", "adapter": {"alpha": Infinity}}', ("adapter.alpha:", "finite")),
    "targets match nothing": (lora(target_modules=["q_prj"]), ("adapter.target_modules:", "q_proj")),
    "regex does not compile": (lora(target_modules="(q_proj"), ("adapter.target_modules:",)),
    "regex backtracks without end": (lora(target_modules="(.*)*(.*)*(.*)*x"), ("adapter.target_modules:",)),
    "DoRA on a type that lacks it": (lora(type="ia3", options={"use_dora": True}), ("adapter.options.use_dora:",)),
    "strategy that needs DoRA": ({**QUICK, "strategy": "zero_b_norm"}, ("strategy:", "DoRA")),
    "unknown strategy": ({**QUICK, "strategy": "fastest"}, ("strategy:",)),
    "GPU strategy without GPU": (
        {**lora(options={"use_dora": True}), "strategy": "gpu_then_cpu"},
        ("strategy:", "GPU"),
    ),
    "device that is not here": ({**QUICK, "device": "cuda:7"}, ("device:", "cuda:7")),
    "unknown dtype": ({**QUICK, "dtype": "int3"}, ("dtype:",)),
    "init that needs data": (lora(options={"init_lora_weights": "eva"}), ("adapter.options.init_lora_weights:",)),
    "hub id without network": ({"model": "nobody-here/no-such-model"}, ("model:",)),
    "saved adapter that is not there": ({**QUICK, "adapter": {"path": "no/such/folder"}}, ("adapter.path:",)),
}


@pytest.mark.parametrize("name", BAD_SPECS)
def test_bad_input_is_one_sentence_that_names_the_field(
    name: str, engine: Engine, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, words = BAD_SPECS[name]
    monkeypatch.chdir(home)
    done = engine("measure", "-", stdin=spec if isinstance(spec, str) else json.dumps(spec))
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert len(lines) == 1, done.stderr
    for word in words:
        assert word in lines[0]


def test_bad_input_ends_the_process_with_status_2_and_no_traceback() -> None:
    done = process("measure", "-", stdin=json.dumps(lora(rank=0)))
    assert done.returncode == 2
    assert done.stderr.startswith("adapter.rank:")
    assert "Traceback" not in done.stderr


def test_a_spec_file_that_is_not_there_is_bad_input(engine: Engine) -> None:
    done = engine("measure", "no-such-file.json")
    assert done.returncode == 2
    assert "no-such-file.json" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "text", ['{"state": "splendid"}', '{"state": "failed", "spec": [1]}', "[" * 100_000, "[1]", "no JSON"]
)
def test_importing_something_else_than_a_result_stores_nothing(
    text: str, tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "not-a-result.json"
    path.write_text(text)
    assert main(["import", str(path)]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert main(["export", "1"]) == 2


def test_a_packed_list_is_imported_whole_and_a_bad_one_not_at_all(
    tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = parse_spec({"kind": "init", "model": "tiny-test"})
    documents = [
        {
            "state": "succeeded",
            "spec": spec.model_dump(mode="json"),
            "spec_hash": spec_hash(spec),
            "uid": f"{number:032x}",
        }
        for number in range(3)
    ]
    path = tmp_path / "results.json.gz"
    path.write_bytes(gzip.compress(json.dumps([*documents[:2], {**documents[2], "format": 99}]).encode()))
    assert main(["import", str(path)]) == 2
    assert capsys.readouterr().err.startswith(f"{path}: document 3: format: 99 is of a newer PEFT Lab")
    assert main(["export", "1"]) == 2
    capsys.readouterr()
    path.write_bytes(gzip.compress(json.dumps(documents).encode()))
    assert main(["import", str(path)]) == 0
    assert [entry["created"] for entry in json.loads(capsys.readouterr().out)] == [True] * 3
    assert main(["export", "1"]) == 0
    exported = json.loads(capsys.readouterr().out)
    assert (exported["format"], exported["adapter"]) == (1, "LoRA")


def test_a_bad_file_is_named_and_keeps_no_good_one_out(
    tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = parse_spec({"kind": "init", "model": "tiny-test"}).model_dump(mode="json")
    good, cut = tmp_path / "good.json", tmp_path / "cut.json"
    good.write_text(json.dumps({"state": "succeeded", "spec": spec}))
    cut.write_text(good.read_text()[:-9])
    assert main(["import", str(cut), str(tmp_path / "none.json"), str(good)]) == 2
    printed = capsys.readouterr()
    assert printed.err.splitlines() == [
        f"{cut}: is cut off; export or copy it again",
        f"RESULT.json: {tmp_path / 'none.json'} cannot be read: no such file or directory",
    ]
    assert [entry["file"] for entry in json.loads(printed.out)] == [str(good)]


# --- what the README says ---------------------------------------------------------------------------------------------


ROOT = Path(__file__).resolve().parents[2]


def readme_commands() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return next(block for block in blocks if "-m engine" in block).splitlines()


def test_the_commands_of_the_readme_work_as_written(
    engine: Engine, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for line in readme_commands():
        commands, _, file = line.partition(" > ")
        passed_on = ""
        for command in commands.split(" | "):
            program, *arguments = shlex.split(command)
            if program == "echo":
                passed_on = " ".join(arguments)
                continue
            assert (program, *arguments[:2]) == (".venv/bin/python", "-m", "engine"), line
            # A supervisor ends its process.
            run = process if arguments[2] == "supervise" else engine
            done = run(*arguments[2:], stdin=passed_on)
            assert done.returncode == 0, (line, done.stderr)
            passed_on = done.stdout
        if file:
            Path(file).write_text(passed_on)
    assert Path("result.json").stat().st_size > 1000
