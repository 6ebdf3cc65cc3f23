"""How numbers, states and names are written on screen: units, three significant digits, colours, icons.

Pure functions; draws nothing and reads nothing. Storage holds bytes and seconds, this module is the only place that
turns them into text: GiB and MiB (binary) for bytes, s and ms for measured times, minutes and hours for waiting times.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from datetime import datetime, tzinfo
from typing import Literal

Better = Literal["lower", "higher"]

DASH = "–"
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
GREY = "#8a949e"

# icon, colour name of the badge, text
_STATES = {
    "queued": (":material/schedule:", "gray", "Queued"),
    "running": (":material/play_circle:", "blue", "Running"),
    "succeeded": (":material/check_circle:", "green", "Succeeded"),
    "failed": (":material/error:", "red", "Failed"),
    "out_of_memory": (":material/memory_alt:", "orange", "Out of memory"),
    "cancelled": (":material/block:", "gray", "Cancelled"),
    "timed_out": (":material/timer_off:", "orange", "Timed out"),
    "lost": (":material/link_off:", "red", "Lost"),
}


def significant(value: float, digits: int = 3) -> str:
    """``value`` rounded to ``digits`` significant digits without an exponent: 0.4213 -> "0.421", 1234 -> "1230"."""
    if not math.isfinite(value):
        return DASH
    if value == 0:
        return "0"
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    rounded = round(value, decimals)
    # 9.996 rounds up into the next power of ten and needs one decimal fewer.
    decimals = digits - 1 - math.floor(math.log10(abs(rounded)))
    return f"{rounded:.{max(decimals, 0)}f}"


def seconds(value: float | None) -> str:
    """A measured time: milliseconds below one second, seconds above."""
    if value is None or not math.isfinite(value):
        return DASH
    return f"{significant(value * 1000)} ms" if 0 < abs(value) < 0.9995 else f"{significant(value)} s"


def duration(value: float | None) -> str:
    """A waiting time, as people say it: "under 1 s", "40 s", "3 min 20 s", "1 h 05 min"."""
    if value is None or not math.isfinite(value) or value < 0:
        return DASH
    if value < 1:
        return "under 1 s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s" if whole % 60 else f"{whole // 60} min"
    minutes = round(whole / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def byte_unit(largest: float) -> tuple[str, int]:
    """The binary unit in which ``largest`` bytes reads best, and how many bytes it is: ("MiB", 1048576)."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        # From 999.5 of a unit on, three digits read better in the next one.
        if abs(largest) >= size * 0.9995 or abs(largest) >= size / 1024 * 999.5:
            return unit, size
    return "B", 1


def size(value: float | None) -> str:
    """Bytes in binary units: 1.50 GiB, 220 MiB, 12.0 KiB, 7 B."""
    if value is None or not math.isfinite(value):
        return DASH
    unit, size_of_unit = byte_unit(value)
    return f"{value:.0f} B" if size_of_unit == 1 else f"{significant(value / size_of_unit)} {unit}"


def count(value: float | None) -> str:
    """A number of parameters: 1.10 B, 50.5 M, 12.3 k, 640."""
    if value is None or not math.isfinite(value):
        return DASH
    for suffix, step in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= step * 0.9995:
            return f"{significant(value / step)} {suffix}"
    return f"{value:.0f}"


def ratio(value: float | None) -> str:
    """How many times as much: 23.1×."""
    return DASH if value is None or not math.isfinite(value) else f"{significant(value)}×"


def share(value: float | None) -> str:
    """A share of one as per cent with at most one decimal: 0.034 -> "3.4 %"."""
    if value is None or not math.isfinite(value):
        return DASH
    return f"{value * 100:.1f} %" if abs(value) < 0.1 else f"{value * 100:.0f} %"


def percent(value: float | None) -> str:
    """A small share with three significant digits: 0.00312 -> "0.312 %"."""
    if value is None or not math.isfinite(value):
        return DASH
    return "under 0.0001 %" if 0 < abs(value) < 1e-6 else f"{significant(value * 100)} %"


def error(value: float | None) -> str:
    """How far a prediction is from what was measured, as a share of that: "exact", "+0.34 %", "−2.10 %"."""
    if value is None or math.isnan(value):
        return DASH
    if math.isinf(value):
        return "nothing measured"
    if value == 0:
        return "exact"
    sign = "+" if value > 0 else "−"
    return f"{sign}under 0.001 %" if abs(value) < 1e-5 else f"{sign}{significant(abs(value) * 100)} %"


def weights(value: float) -> str:
    """A size in multiples of the largest adapted weight: 6.02 W, 0.030 W."""
    return f"{value:.3f} W" if 0 < abs(value) < 0.1 else f"{significant(value)} W"


def measured(value: float | None, unit: str) -> str:
    """A metric's value in the unit it is stored in, as text; "W" is the size of the largest adapted weight."""
    if unit in ("s", "seconds"):
        return seconds(value)
    if unit in ("byte", "bytes", "B"):
        return size(value)
    if unit == "share":
        return share(value)
    if unit == "ratio":
        return ratio(value)
    if unit == "W":
        return DASH if value is None or not math.isfinite(value) else weights(value)
    if unit == "tokens/s":
        return DASH if value is None or not math.isfinite(value) else f"{significant(value)} {unit}"
    return count(value)


def plural(number: int, noun: str) -> str:
    """ "1 run", "3 runs"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def evidence(values: int, runs: int) -> str:
    """What a median stands on: "5 repeats, 1 run" or "10 repeats, 2 runs"; "5 runs" where each has one value."""
    if values <= 1 or values == runs:
        return plural(max(runs, values), "run")
    return f"{plural(values, 'repeat')}, {plural(runs, 'run')}"


def moment(epoch_s: float | None, zone: tzinfo | None = None) -> str:
    """A time of day in the reader's zone: "2026-03-01 14:05"."""
    return DASH if epoch_s is None else datetime.fromtimestamp(epoch_s, zone).strftime("%Y-%m-%d %H:%M")


def ago(epoch_s: float | None, now_s: float) -> str:
    """How long ago: "just now", "5 min ago", "3 h ago", "2 days ago"."""
    if epoch_s is None:
        return DASH
    elapsed = max(now_s - epoch_s, 0)
    if elapsed < 60:
        return "just now"
    if elapsed < 3600:
        return f"{int(elapsed // 60)} min ago"
    if elapsed < 2 * 86400:
        return f"{int(elapsed // 3600)} h ago"
    return f"{int(elapsed // 86400)} days ago"


def state_text(state: str) -> str:
    """ "out_of_memory" -> "Out of memory"."""
    return _STATES[state][2] if state in _STATES else state


def state_icon(state: str) -> str:
    """The Material icon of a run's state."""
    return _STATES[state][0] if state in _STATES else ":material/help:"


def state_colour(state: str) -> str:
    """The badge colour name of a run's state."""
    return _STATES[state][1] if state in _STATES else "gray"


# name: title, which way is better (None where neither is)
_METRICS: dict[str, tuple[str, Better | None]] = {
    "init_time_s": ("Init time", "lower"),
    "first_attach_time_s": ("First attach", "lower"),
    "first_forward_time_s": ("First forward", "lower"),
    "init_peak_extra_bytes": ("Peak extra memory", "lower"),
    "init_peak_extra_rss_bytes": ("Peak extra RSS", "lower"),
    "adapter_parameters": ("Adapter parameters", None),
    "adapted_modules": ("Adapted modules", None),
    "merge_time_s": ("Merge time", "lower"),
    "unmerge_time_s": ("Unmerge time", "lower"),
    "merge_peak_extra_bytes": ("Peak extra memory", "lower"),
    "merge_peak_extra_rss_bytes": ("Peak extra RSS", "lower"),
    "merge_peak_extra_weights": ("Peak extra memory in W", "lower"),
    "merge_drift": ("Drift", "lower"),
    "merge_retained_extra_bytes": ("Retained extra memory", "lower"),
    "largest_weight_bytes": ("Largest adapted weight, W", None),
    "relative_weight_error": ("Weight error", "lower"),
    "relative_logit_error": ("Logit error", "lower"),
    "step_time_s": ("Step time", "lower"),
    "forward_time_s": ("Forward", "lower"),
    "backward_time_s": ("Backward", "lower"),
    "optimizer_time_s": ("Optimizer", "lower"),
    "train_tokens_per_s": ("Training speed", "higher"),
    "peak_bytes": ("Peak memory", "lower"),
    "parameters_bytes": ("Parameters at the peak", "lower"),
    "buffers_bytes": ("Buffers at the peak", "lower"),
    "gradients_bytes": ("Gradients at the peak", "lower"),
    "optimizer_state_bytes": ("Optimizer state at the peak", "lower"),
    "activations_bytes": ("Activations at the peak", "lower"),
    "temporary_bytes": ("Temporary at the peak", "lower"),
    "peak_rss_bytes": ("Peak RSS", "lower"),
    "unattributed_bytes": ("Unattributed by any tensor", "lower"),
    "gradient_depth_layers": ("Depth that gradients reach", None),
    "first_step_time_s": ("First compiled step", "lower"),
    "peak_allocated_bytes": ("Peak allocated on the GPU", "lower"),
    "peak_reserved_bytes": ("Peak reserved on the GPU", "lower"),
    "trainable_parameters": ("Trainable parameters", None),
    "total_parameters": ("All parameters", None),
    "prefill_time_s": ("Prefill time", "lower"),
    "decode_token_time_s": ("Time per token", "lower"),
    "decode_tokens_per_s": ("Decoding speed", "higher"),
    "request_time_s": ("Request time", "lower"),
    "compile_time_s": ("Compile time", "lower"),
    "adapter_swap_time_s": ("Adapter swap time", "lower"),
    "weight_bytes_per_token": ("Weights read per token", "lower"),
    "overhead_ratio": ("Time per token against base", "lower"),
    "gpu_utilization_share": ("GPU utilisation", "higher"),
    "graph_breaks": ("Graph breaks", "lower"),
    "recompiles": ("Recompiles", "lower"),
    "predict_time_s": ("Prediction time", "lower"),
    "background_cpu_share": ("Background CPU", "lower"),
}
# What Markdown takes for the start of an address, and for a block of code.
_ADDRESS = re.compile(r"www(?=\.)|https?:|(?<=[\w.+-])@(?=[-\w]+\.\w)", re.IGNORECASE)
_INDENT = re.compile(r"^(?: {4}|\t)\s*", re.MULTILINE)
_OF_THE_EFFECT = ("relative_weight_error", "relative_logit_error", "merge_drift")


def metric_title(name: str) -> str:
    """A metric's name for people: "init_peak_extra_bytes" -> "Peak extra memory"."""
    if name in _METRICS:
        return _METRICS[name][0]
    words = name.split("_")
    if words[-1] in ("s", "bytes", "share"):
        words = words[:-1]
    text = " ".join("RSS" if word == "rss" else word for word in words)
    return text[:1].upper() + text[1:]


def metric_names() -> tuple[str, ...]:
    """Every metric that a run of some kind can have."""
    return tuple(_METRICS)


def better(name: str) -> Better | None:
    """Which way a metric is better; None where neither is, or where that is not known."""
    return _METRICS[name][1] if name in _METRICS else None


def metric_text(name: str, value: float | None, unit: str) -> str:
    """A metric's value as text; errors are per cent of the adapter's own effect."""
    if name in _OF_THE_EFFECT:
        return percent(value)
    return measured(value, unit)


def targets_text(targets: str | Sequence[str] | None) -> str:
    """Target modules of a spec on one short line."""
    if targets is None:
        return DASH
    if isinstance(targets, str):
        return targets
    return ", ".join(targets) if len(targets) <= 4 else f"{', '.join(targets[:3])} and {len(targets) - 3} more"


def sentence(text: str) -> str:
    """``text`` with a full stop at its end unless it has an ending of its own."""
    stripped = text.strip()
    return stripped if stripped.endswith((".", "!", "?", ":")) or not stripped else f"{stripped}."


def listing(names: Iterable[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    items = list(names)
    return " and ".join([", ".join(items[:-1]), items[-1]]) if len(items) > 1 else "".join(items)


def plain(text: str) -> str:
    """Text from outside, safe inside Markdown: every character that Markdown could act on is escaped.

    Addresses stay text too. Markdown makes links of them whatever is escaped, so an invisible character splits them.
    """
    split = _ADDRESS.sub("\\g<0>\u2060", _INDENT.sub("", text))
    return "".join(f"\\{character}" if character in "\\`*_{}[]()<>#+-.!|~$:&=^@" else character for character in split)


def plain_badge(text: str) -> str:
    """``plain`` for the label of a badge, which escapes square brackets itself."""
    return plain(text).replace("\\[", "[").replace("\\]", "]")
