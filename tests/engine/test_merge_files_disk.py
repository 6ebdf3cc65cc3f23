"""Merging files and the disk: the file format, being killed, bad input, memory, the command, the queue."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from db import queue, runs
from db.session import Database, open_database
from engine.__main__ import main
from engine.jobs import merge_files
from engine.merging.output_folder import JOURNAL, partial_folder
from engine.merging.weight_file import TensorEntry, WeightFileError, WeightFileWriter, read_header
from engine.spec import MergeFilesSpec, spec_hash
from tests.engine.conftest import Engine
from tests.engine.merge_files_cases import ALL_LINEAR, llama, load, run_merge, save_adapter, save_base

Wait = Callable[..., None]


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``base`` in three shards and ``adapter``; not to be changed."""
    folder = tmp_path_factory.mktemp("made")
    model = save_base(folder / "base", llama(), shard="150KB")
    save_adapter(folder / "adapter", model, LoraConfig(r=4, target_modules=ALL_LINEAR))
    assert len(list((folder / "base").glob("*.safetensors"))) == 3
    return folder


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    """The same in a folder that a test may damage."""
    shutil.copytree(made, tmp_path / "copy")
    return tmp_path / "copy"


# --- the file format --------------------------------------------------------------------------------------------------


def test_what_the_writer_writes_the_library_reads(tmp_path: Path) -> None:
    tensors = {
        "b.weight": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3),
        "a": torch.tensor(3.5),
        "leer/ü": torch.zeros(0, 4, dtype=torch.float16),
    }
    dtypes = {torch.bfloat16: "BF16", torch.float32: "F32", torch.float16: "F16"}
    entries = [TensorEntry(name, dtypes[t.dtype], tuple(t.shape), 0, t.nbytes) for name, t in tensors.items()]
    path = tmp_path / "x.safetensors"
    with WeightFileWriter(path, entries, {"format": "pt"}) as writer:
        for tensor in tensors.values():
            writer.write(tensor.flatten().view(torch.uint8).numpy().data)
    found = load_file(path)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_what_the_library_writes_the_reader_reads(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"w": torch.arange(6.0).reshape(2, 3), "i": torch.arange(3)}, path, {"format": "pt"})
    header = read_header(path)
    assert {name: (entry.dtype, entry.shape) for name, entry in header.tensors.items()} == {
        "w": ("F32", (2, 3)),
        "i": ("I64", (3,)),
    }
    entry = header.tensors["w"]
    stored = path.read_bytes()[entry.start : entry.start + entry.size_bytes]
    assert torch.frombuffer(bytearray(stored), dtype=torch.float32).tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (lambda data: data[:4], "not a safetensors file"),
        (lambda data: data[:40], "truncated"),
        (lambda data: data[:-1], "truncated"),
        (lambda data: data + b"\0", "longer"),
        (lambda data: data[:8] + b"x" + data[9:], "damaged header"),
        (lambda data: data.replace(b"[2,3]", b"[2,9]"), "damaged header"),
        (lambda data: data.replace(b'"F32"', b'"F64"'), "damaged header"),
        (lambda data: b"\xff" * 8 + data[8:], "not a safetensors file"),
        (lambda data: b"<html>" * 40, "not a safetensors file"),
    ],
)
def test_a_damaged_file_is_refused_with_what_is_wrong(
    damage: Callable[[bytes], bytes], word: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"w": torch.arange(6.0).reshape(2, 3)}, path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(WeightFileError, match=word):
        read_header(path)


# --- being killed -----------------------------------------------------------------------------------------------------


def merge_and_die(folder: str, out: str, at_sync: int, results: Any) -> None:
    """Merge in this process and kill it by SIGKILL at its n-th request to bring something to the disk."""
    real, count = os.fsync, 0

    def fsync(descriptor: int) -> None:
        nonlocal count
        count += 1
        if count == at_sync:
            os.kill(os.getpid(), signal.SIGKILL)
        real(descriptor)

    os.fsync = fsync
    run_merge(Path(folder) / "base", Path(folder) / "adapter", Path(out))
    results.put(count)


def dies(folder: Path, out: Path, at_sync: int) -> bool:
    """Whether a merge in a process of its own was killed at that moment; False if it ended before."""
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    process = context.Process(target=merge_and_die, args=(str(folder), str(out), at_sync, results))
    process.start()
    process.join(60)
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_killed_at_any_write_nothing_looks_whole_that_is_not_and_the_next_run_ends_it(
    made: Path, tmp_path: Path
) -> None:
    run_merge(made / "base", made / "adapter", tmp_path / "whole")
    whole = contents(tmp_path / "whole")
    at_sync, resumed = 0, 0
    while dies(made, tmp_path / "out", at_sync := at_sync + 1):
        if (tmp_path / "out").exists():
            left = contents(tmp_path / "out")
            assert left.keys() - {JOURNAL} == whole.keys()
        done = run_merge(made / "base", made / "adapter", tmp_path / "out")
        assert contents(tmp_path / "out") == whole, at_sync
        assert [path.name for path in tmp_path.iterdir() if path.name.startswith("out")] == ["out"]
        resumed += done["resumed_shards"] > 0
        shutil.rmtree(tmp_path / "out")
    assert at_sync > 15, "every shard, the journal, every small file and both folders are brought to the disk"
    assert resumed > 6


def test_what_a_killed_run_finished_is_not_written_again(made: Path, tmp_path: Path) -> None:
    assert dies(made, tmp_path / "out", at_sync=9)
    left = {path.name: path.stat().st_mtime_ns for path in partial_folder(tmp_path / "out").glob("*.safetensors")}
    assert left
    done = run_merge(made / "base", made / "adapter", tmp_path / "out")
    assert done["resumed_shards"] == len(left)
    assert all((tmp_path / "out" / name).stat().st_mtime_ns == stamp for name, stamp in left.items())


def test_a_run_with_another_adapter_starts_clean(copied: Path, tmp_path: Path) -> None:
    assert dies(copied, tmp_path / "out", at_sync=9)
    save_adapter(
        copied / "adapter", load(copied / "base"), LoraConfig(r=2, lora_alpha=9, target_modules=["q_proj", "v_proj"])
    )
    assert run_merge(copied / "base", copied / "adapter", tmp_path / "out")["resumed_shards"] == 0
    run_merge(copied / "base", copied / "adapter", tmp_path / "clean")
    assert contents(tmp_path / "out") == contents(tmp_path / "clean")


def test_two_merges_into_one_folder_exclude_each_other(made: Path, tmp_path: Path) -> None:
    from engine.merging.output_folder import OutputFolder

    with OutputFolder(tmp_path / "out", "x" * 64), pytest.raises(ValueError, match="another merge"):
        run_merge(made / "base", made / "adapter", tmp_path / "out")


# --- bad input --------------------------------------------------------------------------------------------------------


def edit(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def shard(folder: Path, number: int = 1) -> Path:
    return sorted((folder / "base").glob("*.safetensors"))[number]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def rename_in_index(folder: Path) -> None:
    path = folder / "base" / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.layers.9.ghost"] = shard(folder).name
    path.write_text(json.dumps(index))


def pickle_only(folder: Path, name: str, weights: str) -> None:
    for path in [*folder.glob("*.safetensors"), *folder.glob("*.index.json")]:
        path.unlink()
    (folder / weights).write_bytes(b"\x80")


def other_size(folder: Path) -> None:
    model = save_base(folder / "other", llama(hidden_size=32))
    save_adapter(folder / "adapter", model, LoraConfig(r=4, target_modules=["q_proj"]))


def more_layers(folder: Path) -> None:
    model = save_base(folder / "other", llama(num_hidden_layers=3))
    save_adapter(folder / "adapter", model, LoraConfig(r=4, target_modules=["q_proj"], layers_to_transform=[2]))


def broken_values(folder: Path) -> None:
    path = folder / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors[next(name for name in tensors if "lora_B" in name)][0, 0] = float("nan")
    save_file(tensors, path)


def rest_of_another_program(folder: Path) -> None:
    (folder.parent / "out.partial").mkdir()
    (folder.parent / "out.partial" / "thesis.txt").write_text("x")


def not_empty(folder: Path) -> None:
    (folder.parent / "out").mkdir()
    (folder.parent / "out" / "thesis.txt").write_text("x")


ADAPTER = "adapter/adapter_config.json"
BAD_INPUT: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "no base": (lambda folder: shutil.rmtree(folder / "base"), ("base:", "not a folder")),
    "base without config": (lambda folder: (folder / "base/config.json").unlink(), ("base:", "config.json")),
    "base of an unknown type": (lambda folder: edit(folder / "base/config.json", model_type="lama"), ("base:",)),
    "config of another size": (
        lambda folder: edit(folder / "base/config.json", intermediate_size=128),
        ("adapter:", "64", "128"),
    ),
    "weights of another size than the config": (
        lambda folder: (other_size(folder), shutil.copy(folder / "other/config.json", folder / "base/config.json")),
        ("base:", "q_proj.weight", "64 x 64"),
    ),
    "no alpha": (lambda folder: edit(folder / ADAPTER, lora_alpha=None), ("adapter:", "lora_alpha")),
    "quantised base": (
        lambda folder: edit(folder / "base/config.json", quantization_config={"load_in_4bit": True}),
        ("base:", "quantised"),
    ),
    "shard missing": (lambda folder: shard(folder).unlink(), ("base:", "model-00002-of-00003.safetensors", "missing")),
    "shard truncated": (lambda folder: truncate(shard(folder)), ("base:", "model-00002-of-00003", "truncated")),
    "index names a missing tensor": (rename_in_index, ("base:", "model.layers.9.ghost")),
    "index of a file elsewhere": (
        lambda folder: edit(folder / "base/model.safetensors.index.json", weight_map={"a": "../../x"}),
        ("base:", "../../x"),
    ),
    "pickled base": (lambda folder: pickle_only(folder / "base", "base", "pytorch_model.bin"), ("base:", "pickle")),
    "no adapter": (lambda folder: shutil.rmtree(folder / "adapter"), ("adapter:", "not a folder")),
    "adapter without config": (lambda folder: (folder / ADAPTER).unlink(), ("adapter:", "adapter_config.json")),
    "adapter truncated": (
        lambda folder: truncate(folder / "adapter/adapter_model.safetensors"),
        ("adapter:", "truncated"),
    ),
    "pickled adapter": (
        lambda folder: pickle_only(folder / "adapter", "adapter", "adapter_model.bin"),
        ("adapter:", "pickle"),
    ),
    "another type": (lambda folder: edit(folder / ADAPTER, peft_type="LOHA"), ("adapter:", "LOHA", "LoRA")),
    "pissa": (lambda folder: edit(folder / ADAPTER, init_lora_weights="pissa"), ("adapter:", "pissa")),
    "a variant": (lambda folder: edit(folder / ADAPTER, alora_invocation_tokens=[1]), ("adapter:", "alora")),
    "dora without magnitudes": (lambda folder: edit(folder / ADAPTER, use_dora=True), ("adapter:", "magnitude")),
    "adapter of another size": (other_size, ("adapter:", "layers.0.self_attn.q_proj", "64 x 64")),
    "adapter of a deeper model": (more_layers, ("adapter:", "model.layers.2.self_attn.q_proj")),
    "adapter with values that are not finite": (broken_values, ("adapter:", "not finite")),
    "output not empty": (not_empty, ("out:", "not an empty folder")),
    "place taken": (rest_of_another_program, ("out:", "out.partial")),
}


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input_is_one_sentence_that_names_the_field_and_nothing_is_written(
    name: str, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, words = BAD_INPUT[name]
    damage(copied)
    before = sorted(copied.parent.rglob("*"))
    code = main(["merge", str(copied / "base"), str(copied / "adapter"), str(copied.parent / "out")])
    captured = capsys.readouterr()
    sentence = captured.err.strip().splitlines()[-1]
    assert code == 2, captured.err
    assert captured.out == ""
    assert sentence.startswith(words[0]), sentence
    assert all(word in sentence for word in words), sentence
    assert "Traceback" not in captured.err
    assert sorted(copied.parent.rglob("*")) == before


@pytest.mark.parametrize("place", ["base", "base/merged", "adapter/merged"])
def test_the_output_may_not_be_in_what_is_read(place: str, copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["merge", str(copied / "base"), str(copied / "adapter"), str(copied / place)]) == 2
    assert capsys.readouterr().err.startswith("out:")


def test_a_disk_without_space_is_found_before_anything_is_written(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=300_000))
    assert main(["merge", str(made / "base"), str(made / "adapter"), str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith("out:")
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_stops_with_a_sentence_and_the_next_run_goes_on(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, count = os.fsync, 0

    def full(descriptor: int) -> None:
        nonlocal count
        count += 1
        if count == 9:
            raise OSError(28, "No space left on device")
        real(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        assert main(["merge", str(made / "base"), str(made / "adapter"), str(tmp_path / "out")]) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert run_merge(made / "base", made / "adapter", tmp_path / "out")["resumed_shards"] > 0


# --- memory -----------------------------------------------------------------------------------------------------------


def test_memory_stays_within_two_and_a_half_times_the_largest_tensor_whatever_the_models_size(
    tmp_path: Path,
) -> None:
    config = llama(hidden_size=1024, intermediate_size=4096, vocab_size=20_000, num_hidden_layers=6)
    model = save_base(tmp_path / "base", config, torch.bfloat16, shard="60MB")
    lora = LoraConfig(r=16, target_modules=[*ALL_LINEAR, "embed_tokens", "lm_head"])
    save_adapter(tmp_path / "adapter", model, lora)
    del model
    done = run_merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    assert done["largest_tensor_bytes"] == 20_000 * 1024 * 2
    assert done["model_bytes"] > 5 * done["largest_tensor_bytes"]
    assert done["merge_files_peak_extra_bytes"] <= 2.5 * done["largest_tensor_bytes"]


# --- the command and the queue ----------------------------------------------------------------------------------------


def test_the_command_prints_one_document_and_its_progress_elsewhere(made: Path, tmp_path: Path, engine: Engine) -> None:
    done = engine("merge", *map(str, (made / "base", made / "adapter", tmp_path / "out")))
    document = json.loads(done.stdout)
    assert done.returncode == 0
    assert len(document["merged"]) == 14
    assert document["written_bytes"] == sum(path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors"))
    assert "merging" in done.stderr
    load(tmp_path / "out")


@pytest.fixture
def database(home: Path) -> Iterator[Database]:
    opened = open_database()
    yield opened
    opened.close()


@pytest.fixture
def supervisor(home: Path) -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-m", "engine", "supervise"], stderr=subprocess.DEVNULL)
    yield
    process.kill()
    process.wait()


def enqueue(database: Database, base: Path, adapter: Path, out: Path) -> int:
    spec = MergeFilesSpec(base=str(base), adapter=str(adapter), out=str(out))
    new = queue.NewRun(
        kind=spec.kind,
        spec=spec.model_dump(mode="json"),
        spec_hash=spec_hash(spec),
        model=spec.base,
        device=spec.device,
        priority=1,
    )
    with database.writing() as db:
        return queue.enqueue(db, [new])[0]


def state_of(database: Database, run_id: int) -> str:
    with database.reading() as db:
        row = runs.get_run(db, run_id)
    assert row is not None
    return row.state


@pytest.mark.usefixtures("supervisor")
def test_a_queued_merge_runs_and_says_what_it_wrote(
    made: Path, tmp_path: Path, database: Database, eventually: Wait
) -> None:
    run_id = enqueue(database, made / "base", made / "adapter", tmp_path / "out")
    refused = enqueue(database, made / "base", made / "base", tmp_path / "other")
    eventually(lambda: state_of(database, refused) == "failed", "the second is refused")
    assert state_of(database, run_id) == "succeeded"
    load(tmp_path / "out")
    with database.reading() as db:
        metrics = {metric.name: metric.value for metric in runs.get_run(db, run_id).metrics}  # type: ignore[union-attr]
        sentence = runs.get_run(db, refused).error_text  # type: ignore[union-attr]
    assert metrics["merged_tensors"] == 14
    assert str(sentence).startswith("adapter:")


@pytest.mark.usefixtures("supervisor")
def test_a_cancelled_merge_leaves_no_output_and_can_be_started_again(
    tmp_path: Path, database: Database, eventually: Wait
) -> None:
    config = llama(hidden_size=512, intermediate_size=2048, num_hidden_layers=16, vocab_size=1000)
    model = save_base(tmp_path / "base", config, torch.float32, shard="8MB")
    save_adapter(tmp_path / "adapter", model, LoraConfig(r=8, target_modules=ALL_LINEAR))
    run_id = enqueue(database, tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    partial = partial_folder(tmp_path / "out")
    eventually(lambda: len(list(partial.glob("*.safetensors"))) > 1, "two shards are written")
    with database.writing() as db:
        queue.request_cancel(db, [run_id])
    eventually(lambda: state_of(database, run_id) not in ("queued", "running"), "it is cancelled")
    assert state_of(database, run_id) == "cancelled"
    assert not (tmp_path / "out").exists()
    assert run_merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")["resumed_shards"] > 1


def test_a_request_merges_the_same_as_the_command(made: Path, tmp_path: Path) -> None:
    spec = MergeFilesSpec(base=str(made / "base"), adapter=str(made / "adapter"), out=str(tmp_path / "out"))
    outcome = merge_files.run(spec, lambda progress: None)
    assert all(check.passed for check in outcome.checks)
    run_merge(made / "base", made / "adapter", tmp_path / "again")
    assert contents(tmp_path / "out") == contents(tmp_path / "again")
