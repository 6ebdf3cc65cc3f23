"""A plan of what fits as sentences, cards and DataFrames. Pure functions on the plan's document; draws nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from app import formatting
from app.widgets.metrics import Card
from engine.catalog.fitting import Candidate, ranked

#: Seconds of a step measured here, by number of the method and place.
Times = Mapping[tuple[int, str], float]
Plan = Mapping[str, Any]


def labels_of(plan: Plan) -> list[str]:
    """What each method is called: its adapter, and the format of its base where that is quantised."""
    return [
        method["label"] + (f" on {method['spec']['quantization']}" if method["spec"].get("quantization") else "")
        for method in plan["methods"]
    ]


def answers_at(plan: Plan, place: str, times: Times) -> list[Mapping[str, Any]]:
    """The answers at one place, best first; ``step_time_s`` is the measured one where there is one."""
    found = [
        {
            **answer,
            "step_time_s": times.get((answer["method"], place), answer.get("step_time_s")),
            "is_measured": (answer["method"], place) in times,
        }
        for answer in plan["answers"]
        if answer["place"] == place
    ]
    candidates = [
        Candidate(None, 0) if one["error"] else Candidate(one["fit"], one["needed_bytes"], one["step_time_s"])
        for one in found
    ]
    return [found[number] for number in ranked(candidates)]


def recommendation(plan: Plan, times: Times) -> list[str]:
    """One sentence for each place, in Markdown: what to take there, or what would have to change."""
    return [f"{place['label']}: {_advice(plan, place, times)}" for place in plan["places"]]


def _advice(plan: Plan, place: Mapping[str, Any], times: Times) -> str:
    names, answers = labels_of(plan), answers_at(plan, place["id"], times)
    possible = [one for one in answers if one["error"] is None]
    if not possible:
        return "nothing can be predicted there"
    best = possible[0]
    memory = f"{formatting.size(best['needed_bytes'])} of {formatting.size(place['memory_bytes'])}"
    if best["fit"] != "will not fit":
        word = "fits" if best["fit"] == "fits" else "is tight"
        return f"**{names[best['method']]}** {word} with {memory}{_time(best)}"
    helped = next((one for one in possible if one["together"]), None)
    if helped is None:
        return f"nothing fits, and no change here makes it; **{names[best['method']]}** comes closest with {memory}"
    changes = formatting.listing([change[:1].lower() + change[1:] for change in helped["together"]["labels"]])
    needed = formatting.size(helped["together"]["needed_bytes"])
    return f"nothing fits as it is; **{names[helped['method']]}** does with {changes}: {needed}"


def _time(answer: Mapping[str, Any]) -> str:
    if answer["step_time_s"] is None:
        return ""
    how = "measured here" if answer["is_measured"] else "estimated"
    return f", {formatting.seconds(answer['step_time_s'])} a step ({how})"


def cards(plan: Plan, times: Times) -> list[Card]:
    """A card for each place with what comes first there."""
    names, found = labels_of(plan), []
    for place in plan["places"]:
        best = next((one for one in answers_at(plan, place["id"], times) if one["error"] is None), None)
        if best is None:
            found.append(Card(place["label"], formatting.DASH, "not predicted"))
            continue
        share = best["needed_bytes"] / place["memory_bytes"] if place["memory_bytes"] else float("inf")
        if best["fit"] == "will not fit":
            value, note = "Nothing as it is", f"{names[best['method']]}: {formatting.share(share)} of the memory"
        else:
            value, note = names[best["method"]], f"{best['fit']} · {formatting.share(share)} of the memory"
        found.append(
            Card(
                place["label"],
                value,
                note,
                f"{formatting.size(place['memory_bytes'])}: {place['memory_source']}",
                is_good=best["fit"] == "fits",
                is_bad=best["fit"] == "will not fit",
            )
        )
    return found


def table(plan: Plan, times: Times) -> pd.DataFrame:
    """A line for each place and method, best first at each place, in stored units."""
    names, lines = labels_of(plan), []
    for place in plan["places"]:
        for rank, one in enumerate(answers_at(plan, place["id"], times), start=1):
            lines.append(
                {
                    "place": place["label"],
                    "rank": rank,
                    "method": names[one["method"]],
                    "fit": one.get("fit"),
                    "needed_bytes": one.get("needed_bytes"),
                    "memory_bytes": place["memory_bytes"],
                    "largest_context": one.get("largest_context"),
                    "context_end": one.get("context_end"),
                    "largest_batch": one.get("largest_batch"),
                    "batch_end": one.get("batch_end"),
                    "step_time_s": one["step_time_s"],
                    "step_time_is": None
                    if one["step_time_s"] is None
                    else ("measured here" if one["is_measured"] else "estimated"),
                    "trained_parameters": plan["methods"][one["method"]]["trained_parameters"],
                    "makes_it_fit": ", ".join(one["together"]["labels"]) if one.get("together") else None,
                    "error": one["error"],
                }
            )
    return pd.DataFrame(lines)


def shown(frame: pd.DataFrame) -> pd.DataFrame:
    """The table for people."""

    def reached(value: Any, end: Any, unit: str) -> str:
        if pd.isna(value):
            return formatting.DASH
        if not value:
            return "none"
        return f"{int(value):,} {unit}".strip() + (" (all)" if value == end else "")

    found = pd.DataFrame(
        {
            "Where": frame["place"],
            "#": frame["rank"],
            "Method": frame["method"],
            "Fits": [[word] if isinstance(word, str) else [] for word in frame["fit"]],
            "Needs": [formatting.size(_number(value)) for value in frame["needed_bytes"]],
            "Of": [formatting.size(value) for value in frame["memory_bytes"]],
            "Largest context": [
                reached(value, end // 1 if pd.notna(end) else end, "")
                for value, end in zip(frame["largest_context"], frame["context_end"], strict=True)
            ],
            "Largest batch": [
                reached(value, end, "") for value, end in zip(frame["largest_batch"], frame["batch_end"], strict=True)
            ],
            "A step takes": [
                formatting.DASH if pd.isna(seconds) else f"{formatting.seconds(seconds)}, {how}"
                for seconds, how in zip(frame["step_time_s"], frame["step_time_is"], strict=True)
            ],
            "Trained parameters": [formatting.count(_number(value)) for value in frame["trained_parameters"]],
            "Makes it fit": [value if isinstance(value, str) else "" for value in frame["makes_it_fit"]],
        }
    )
    if frame["error"].notna().any():
        found["Not predicted, because"] = [value if isinstance(value, str) else "" for value in frame["error"]]
    return found


def _number(value: Any) -> float | None:
    return None if pd.isna(value) else float(value)


def base(plan: Plan) -> pd.DataFrame:
    """What the base's weights take in each format, and at which places they fit, in stored units."""
    return pd.DataFrame(
        [
            {
                "format": weights["format"],
                "bytes": weights["bytes"],
                "unquantised_bytes": weights["unquantised_bytes"],
                "largest_module": weights["largest_module"],
                "largest_module_bytes": weights["largest_module_bytes"],
                **{place["label"]: weights["fits"][place["id"]] for place in plan["places"]},
            }
            for weights in plan["base"]
        ]
    )


def base_shown(plan: Plan) -> pd.DataFrame:
    """The base's weights for people."""
    frame = base(plan)
    return pd.DataFrame(
        {
            "Weights in": frame["format"],
            "Take": [formatting.size(value) for value in frame["bytes"]],
            "Of that not quantised": [formatting.size(value) for value in frame["unquantised_bytes"]],
            "Largest module": [
                f"{name} ({formatting.size(size)})"
                for name, size in zip(frame["largest_module"], frame["largest_module_bytes"], strict=True)
            ],
            **{place["label"]: [[word] for word in frame[place["label"]]] for place in plan["places"]},
        }
    )


def changeable(plan: Plan) -> list[tuple[str, Mapping[str, Any]]]:
    """The answers that changes were looked for, with what to call them: those that do not fit comfortably."""
    names = labels_of(plan)
    places: Sequence[Mapping[str, Any]] = plan["places"]
    return [
        (f"{names[one['method']]} on {place['label']}", one)
        for place in places
        for one in plan["answers"]
        if one["place"] == place["id"] and one["error"] is None and one["changes"]
    ]


def changes(answer: Mapping[str, Any]) -> pd.DataFrame:
    """What each change saves, most first, in stored units."""
    return pd.DataFrame(answer["changes"]).drop(columns="id")


def changes_shown(answer: Mapping[str, Any]) -> pd.DataFrame:
    """What each change saves, for people."""
    found = answer["changes"]
    return pd.DataFrame(
        {
            "Change": [one["label"] for one in found],
            "Saves": [formatting.size(one["saved_bytes"]) for one in found],
            "Then needs": [formatting.size(one["needed_bytes"]) for one in found],
            "Fits": [[one["fit"]] for one in found],
            "Costs": [one["cost"] for one in found],
        }
    )
