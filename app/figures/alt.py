"""What a chart shows, in one sentence for those who cannot see it."""

from __future__ import annotations

from collections.abc import Mapping

from app import formatting


def alt_text(title: str, medians: Mapping[str, float], unit: str, better: formatting.Better | None = None) -> str:
    """One sentence: what is shown of how many, and the extremes. The table beside the chart has the numbers.

    Args:
        title: what the chart shows, without a full stop.
        medians: name of each row or line -> its median; missing ones are not counted.
        unit: of the medians, as metrics store it.
        better: which way is better.
    """
    known = {name: value for name, value in medians.items() if value == value}
    way = f", {better} is better" if better else ""
    if not known:
        return f"{title}{way}; nothing was measured"
    low, high = min(known, key=known.__getitem__), max(known, key=known.__getitem__)
    if len(known) == 1:
        return f"{title}{way}: {low} {formatting.measured(known[low], unit)}"
    return (
        f"{title}{way}; {len(known)} groups from {low} with {formatting.measured(known[low], unit)} "
        f"to {high} with {formatting.measured(known[high], unit)}"
    )
