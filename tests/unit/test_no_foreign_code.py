"""Nothing that comes from outside is run: no pickled files, no code of a model's own, no text evaluated."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# `multiprocessing` pickles what a process of ours sends to another of ours; files are what these would read.
_READ_PICKLES = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
_RUN_TEXT = {"eval", "exec", "compile", "__import__"}
_LOADERS = ("from_pretrained", "from_config")


@functools.cache
def nodes() -> tuple[tuple[str, ast.Import | ast.ImportFrom | ast.Call], ...]:
    """Every import and every call in the project but for its tests, with the file's name."""
    return tuple(
        (str(path.relative_to(ROOT)), node)
        for folder in ("app", "db", "engine")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom | ast.Call)
    )


@functools.cache
def calls() -> tuple[tuple[str, str, ast.Call], ...]:
    """Every call, as it is written up to its parentheses."""
    return tuple((path, ast.unparse(node.func), node) for path, node in nodes() if isinstance(node, ast.Call))


def test_no_module_reads_pickled_files() -> None:
    for path, node in nodes():
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not {name.partition(".")[0] for name in names} & _READ_PICKLES, path
    for path, called, _ in calls():
        assert called not in ("torch.load", "numpy.load", "np.load", "pd.read_pickle", "torch.jit.load"), path


def test_no_text_is_evaluated() -> None:
    for path, called, node in calls():
        assert called not in _RUN_TEXT, f"{path}:{node.lineno}"


def test_no_shell_is_asked() -> None:
    for path, called, node in calls():
        assert called not in ("os.system", "os.popen"), f"{path}:{node.lineno}"
        assert not any(keyword.arg == "shell" for keyword in node.keywords), f"{path}:{node.lineno}"


def test_every_loader_refuses_remote_code_and_every_one_of_weights_takes_safetensors_only() -> None:
    seen = 0
    for path, called, node in calls():
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        assert given.get("trust_remote_code", "False") == "False", f"{path}:{node.lineno}"
        is_of_transformers = called.rpartition(".")[0].startswith(("Auto", "_AUTO_CLASSES"))
        if called.endswith(_LOADERS) and is_of_transformers:
            seen += 1
            assert "trust_remote_code" in given, f"{path}:{node.lineno}"
            if called.endswith("from_pretrained") and "AutoConfig" not in called:
                assert given.get("use_safetensors") == "True", f"{path}:{node.lineno}"
    assert seen >= 4
