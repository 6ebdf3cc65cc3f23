"""What a measurement ran on: hardware, software, allocator settings, and the devices that runs can use.

Measures nothing itself. Facts that cannot change while a process lives are looked up once and shared with every
process forked from it: call ``preload()`` in the fork server. Never initialises CUDA. Imports torch only when asked
for what torch knows, so that ``WORKER_ENVIRONMENT`` can be read before torch is loaded.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import psutil

from engine.result import Device
from engine.secrets import masked_value

WORKER_ENVIRONMENT: Mapping[str, str] = {
    # glibc raises its mmap threshold as blocks are freed, up to 32 MiB, so how much freed memory a process keeps, and
    # how often it pays for fresh pages, would depend on what ran before. Fixed where that rule ends: a lower value
    # makes PEFT's temporaries slower than they are for anyone else (1 MiB: stock DoRA on TinyLlama three times).
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    # Fixing one threshold freezes the other at 128 KiB, which would give pages back and fault them in again each time.
    "MALLOC_TRIM_THRESHOLD_": str(256 * 2**20),
    # torch.cuda.is_available() asks NVML and leaves CUDA uninitialised, so that workers can still be forked.
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
    # CUDA's own order is fastest first; NVML, which names the GPUs for us, counts by PCI address.
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
}
"""Environment variables that must be set before a worker's (or its fork server's) process starts."""

NODE_VARIABLE = "PEFT_LAB_NODE"
_RECORDED_PREFIXES = ("MALLOC_", "OMP_", "KMP_", "MKL_", "THP_", "PYTORCH_", "GLIBC_TUNABLES", "CUDA_")
_PACKAGES = ("torch", "transformers", "peft", "accelerate", "safetensors", "numpy")
_PROJECT = Path(__file__).resolve().parents[2]
Answer = TypeVar("Answer")


def environment() -> dict[str, Any]:
    """Everything about this machine and process that decides what a measurement means, ready for JSON.

    Sizes are bytes. Values that the system does not tell are ``None``.
    """
    import torch

    return {
        **_constant_facts(),
        "threads": torch.get_num_threads(),
        "variables": {
            name: masked_value(name, value)
            for name, value in sorted(os.environ.items())
            if name.startswith(_RECORDED_PREFIXES)
        },
    }


def preload() -> None:
    """Look up what never changes, so that forked workers find it ready."""
    environment()
    devices()


@functools.cache
def devices() -> tuple[Device, ...]:
    """The devices of this machine: the CPU first, then NVIDIA GPUs in CUDA's order, then Apple's GPU."""
    cpu = Device(
        id="cpu",
        kind="cpu",
        name=_cpu_name(),
        memory_bytes=_memory_bytes(),
        dtypes=("float32", "bfloat16", "float16"),
    )
    return (cpu, *_cuda_devices(), *_mps_devices())


@functools.cache
def _constant_facts() -> dict[str, Any]:
    commit, dirty = _project_version()
    gpus = [device for device in devices() if device.kind == "cuda"]
    return {
        # One machine alone needs no name, and a host name that changes must not make it look like two.
        "node": os.environ.get(NODE_VARIABLE),
        "cpu": _cpu_name(),
        "cores": _cores(),
        "memory_bytes": _memory_bytes(),
        "gpus": [{"id": gpu.id, "name": gpu.name, "memory_bytes": gpu.memory_bytes} for gpu in gpus],
        "gpu_driver": gpus[0].driver if gpus else None,
        "os": _os_name(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "commit": commit,
        "dirty": dirty,
        "transparent_huge_pages": _chosen(Path("/sys/kernel/mm/transparent_hugepage/enabled")),
        "cpu_governor": _text(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
    }


def node_name() -> str:
    """What this machine is called: ``PEFT_LAB_NODE`` where somebody named it, its host name elsewhere."""
    return as_node_name(os.environ.get(NODE_VARIABLE) or platform.node())


def as_node_name(text: str) -> str:
    """``text`` with nothing in it that a node's name may not have."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", text)[:253].strip("-._") or "localhost"


def versions() -> dict[str, str]:
    """The versions that decide whether two machines' numbers can be compared; what is missing is left out."""
    found = {name: _version(name) for name in ("torch", "transformers", "peft")}
    return {"python": platform.python_version(), **{name: text for name, text in found.items() if text}}


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip() or None
    except OSError:
        return None


def _chosen(path: Path) -> str | None:
    """The bracketed word of a file like ``always [madvise] never``."""
    text = _text(path)
    return text.partition("[")[2].partition("]")[0] or None if text else None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _os_name() -> str:
    if sys.platform.startswith("linux"):
        try:
            return platform.freedesktop_os_release()["PRETTY_NAME"]
        except (OSError, KeyError):
            return "Linux"
    return f"{platform.system()} {platform.mac_ver()[0] or platform.version()}".strip()


@functools.cache
def _cpu_name() -> str:
    for line in (_text(Path("/proc/cpuinfo")) or "").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name" and value.strip():
            return value.strip()
    if sys.platform == "darwin":
        return _output("sysctl", "-n", "machdep.cpu.brand_string") or platform.machine()
    return platform.processor() or platform.machine()


def _cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@functools.cache
def _memory_bytes() -> int:
    """Memory this process may use: the machine's, or its control group's limit where that is lower."""
    total: int = psutil.virtual_memory().total
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        text = _text(Path(limit))
        if text and text.isdigit():
            total = min(total, int(text))
    return total


def _output(*command: str) -> str | None:
    """What a command prints, or ``None`` if it cannot be run or fails."""
    try:
        done = subprocess.run(command, cwd=_PROJECT, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


@functools.cache
def _project_version() -> tuple[str | None, bool | None]:
    """Git commit of the running code and whether tracked files differ from it; ``None`` outside a checkout."""
    if not (_PROJECT / ".git").exists():
        return None, None
    commit = _output("git", "rev-parse", "HEAD")
    changes = _output("git", "status", "--porcelain", "--untracked-files=no")
    return commit, None if commit is None or changes is None else bool(changes)


def compute_capability(device_id: str) -> tuple[int, int] | None:
    """That of a CUDA device such as ``cuda:0``; None where this machine has no such device."""
    index = int(device_id.partition(":")[2])

    def ask(pynvml: Any) -> tuple[int, int] | None:
        handles = _visible_handles(pynvml)[index : index + 1]
        return tuple(pynvml.nvmlDeviceGetCudaComputeCapability(handles[0])) if handles else None

    return _from_nvml(ask, None)


def _cuda_devices() -> tuple[Device, ...]:
    def ask(pynvml: Any) -> tuple[Device, ...]:
        driver = str(pynvml.nvmlSystemGetDriverVersion())
        return tuple(
            _cuda_device(pynvml, handle, index, driver) for index, handle in enumerate(_visible_handles(pynvml))
        )

    return _from_nvml(ask, ())


def _from_nvml(ask: Callable[[Any], Answer], otherwise: Answer) -> Answer:
    """What NVML, which needs no CUDA context (one takes hundreds of MB on the GPU), says of NVIDIA's GPUs."""
    import torch

    if not torch.backends.cuda.is_built():
        return otherwise
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # no library, no driver, or one too old: then there is no GPU that can be used
        return otherwise
    try:
        return ask(pynvml)
    except pynvml.NVMLError:
        return otherwise
    finally:
        pynvml.nvmlShutdown()


def _visible_handles(pynvml: Any) -> list[Any]:
    """NVML handles in CUDA's order: PCI order, narrowed by ``CUDA_VISIBLE_DEVICES`` (indices or UUID prefixes)."""
    handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return handles
    chosen = []
    for entry in filter(None, map(str.strip, visible.split(","))):
        if entry.isdigit():
            found = handles[int(entry) : int(entry) + 1]
        else:
            found = [handle for handle in handles if str(pynvml.nvmlDeviceGetUUID(handle)).startswith(entry)][:1]
        if not found:  # as CUDA does: the first entry that names no device ends the list
            break
        chosen.extend(found)
    return chosen


def _cuda_device(pynvml: Any, handle: Any, index: int, driver: str) -> Device:
    major, _ = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
    return Device(
        id=f"cuda:{index}",
        kind="cuda",
        name=str(pynvml.nvmlDeviceGetName(handle)),
        memory_bytes=int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
        dtypes=("float32", "bfloat16", "float16") if major >= 8 else ("float32", "float16"),
        driver=driver,
    )


def _mps_devices() -> tuple[Device, ...]:
    import torch

    if not torch.backends.mps.is_available():
        return ()
    return (
        Device(
            id="mps",
            kind="mps",
            name=f"{_cpu_name()} GPU",
            memory_bytes=_memory_bytes(),
            dtypes=("float32", "bfloat16", "float16"),
        ),
    )
