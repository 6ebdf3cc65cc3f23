"""What on this machine makes measured numbers mean less than they seem to, as sentences. Data in, sentences out."""

from __future__ import annotations

from app import formatting
from app.host import Host

#: A little is left in swap on any machine that was ever short of memory.
SWAP_BYTES = 64 * 2**20
#: A run counts as disturbed from 10 % on; two such programs are that.
CPU_SHARE = 0.05
MEMORY_SHARE = 0.1
DISK_FREE_BYTES = 2 * 2**30
#: Longer than a supervisor waits for the database or for its fork server to start.
SILENT_S = 60.0
_NAMED = 3


def host_warnings(host: Host) -> list[str]:
    """One plain sentence or two for each thing that is wrong, each saying what to do; none on a quiet machine."""
    found = [
        _swap(host),
        _programs(host),
        _governor(host),
        _memory_limit(host),
        _cores_limit(host),
        _disk(host),
    ]
    return [text for text in found if text]


def supervisor_warning(heartbeat_at: float, now_s: float) -> str | None:
    """A sentence when a supervisor that has the lock does not go round its loop any more."""
    silent_s = now_s - heartbeat_at
    if silent_s < SILENT_S:
        return None
    return (
        f"The supervisor has given no sign for {formatting.duration(silent_s)}, though its process has the lock. "
        "If that goes on, end it: the next page starts another, and what is measured goes on."
    )


def _swap(host: Host) -> str | None:
    if host.swap_used_bytes < SWAP_BYTES:
        return None
    return (
        f"{formatting.size(host.swap_used_bytes)} of swap is in use. A run that reaches swap measures the disk; close "
        "what needs memory before you measure."
    )


def _programs(host: Host) -> str | None:
    heavy = [
        process
        for process in host.processes
        if process.cpu_share >= CPU_SHARE or process.memory_bytes >= MEMORY_SHARE * host.memory_bytes
    ]
    if not heavy:
        return None
    named = [
        f"{process.name} (process {process.pid}, {formatting.share(process.cpu_share)} of the CPU, "
        f"{formatting.size(process.memory_bytes)})"
        for process in heavy[:_NAMED]
    ]
    if len(heavy) > _NAMED:
        named.append(f"{len(heavy) - _NAMED} more")
    return f"Other programs are at work: {formatting.listing(named)}. Runs measured beside them may be disturbed."


def _governor(host: Host) -> str | None:
    varying = [name for name in host.governors if name != "performance"]
    if not varying:
        return None
    return (
        f"The CPU changes its frequency with the load (governor {formatting.listing(varying)}), so short times vary; "
        "the governor performance keeps it steady."
    )


def _memory_limit(host: Host) -> str | None:
    limit = host.limits.memory_bytes
    if limit is None or limit >= host.memory_bytes:
        return None
    return (
        f"A control group leaves PEFT Lab {formatting.size(limit)} of this machine's "
        f"{formatting.size(host.memory_bytes)} of memory; a run that needs more is ended."
    )


def _cores_limit(host: Host) -> str | None:
    cores = min(host.cores, host.limits.cores or host.cores)
    if cores >= host.machine_cores:
        return None
    return (
        f"PEFT Lab may use {cores:g} of this machine's {host.machine_cores} cores; times are those of "
        f"{'one core' if cores == 1 else f'{cores:g} cores'}."
    )


def _disk(host: Host) -> str | None:
    if host.disk_free_bytes >= DISK_FREE_BYTES:
        return None
    return (
        f"Only {formatting.size(host.disk_free_bytes)} of disk is free where runs are stored, and without any no run "
        "can be measured. Make room there."
    )
