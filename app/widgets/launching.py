"""Putting validated specs into the queue. The one place where a page turns specs into runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from app import people, places, state
from app.widgets import labels
from db import queue
from db.queue import NewRun
from engine.catalog import requirements
from engine.spec import InspectSpec, Measured, MergeFilesSpec, PlanSpec, PredictSpec, Spec, spec_hash


def new_run(spec: Spec) -> NewRun:
    """The queue's entry for a spec, with the columns that pages filter by."""
    document = spec.model_dump(mode="json")
    if isinstance(spec, InspectSpec | PredictSpec | PlanSpec | MergeFilesSpec):
        return NewRun(
            kind=spec.kind,
            spec=document,
            spec_hash=spec_hash(spec),
            model=_model_of(spec),
            device=spec.device,
            priority=1,
        )
    adapter = document["adapter"]
    return NewRun(
        kind=spec.kind,
        spec=document,
        spec_hash=spec_hash(spec),
        model=spec.model,
        adapter=labels.adapter_label(adapter) if adapter else labels.FULL if spec.kind == "train" else None,
        adapter_type=_adapter_type(adapter) if adapter else None,
        strategy=spec.strategy,
        dtype=spec.dtype,
        device=spec.device,
        node=spec.node,
        device_type=spec.device_type,
    )


def _model_of(spec: InspectSpec | PredictSpec | PlanSpec | MergeFilesSpec) -> str:
    if isinstance(spec, MergeFilesSpec):
        return spec.base
    return spec.model if isinstance(spec, InspectSpec) else spec.of[0].model


def launch(specs: Sequence[Spec], sweep_name: str | None = None) -> list[int]:
    """Queue the specs in their order, as one sweep if it has a name, and make sure that someone works on them.

    Recorded is what somebody asked for by a button; predictions and inspections are what pages need to be drawn.

    Returns:
        The ids of the new runs.

    Raises:
        NotAllowed: when this visitor may only look.
    """
    with people.acting("launch") as act:
        ids = queue.enqueue(act.session, [new_run(spec) for spec in specs], sweep_name)
        if not all(isinstance(spec, InspectSpec | PredictSpec) for spec in specs):
            act.run_ids, act.detail = ids, sweep_name or labels.kind_label(specs[0].kind)
    state.ensure_supervisor()
    return ids


def launch_again(spec: Spec) -> list[int]:
    """Queue a spec once more.

    Raises:
        SpecError: why nothing here can run it; it would wait for ever.
    """
    nodes, devices = state.nodes(), tuple(state.devices())
    if isinstance(spec, Measured):
        if misplaced := places.problem(spec, nodes):
            raise misplaced
        devices = places.devices(places.nodes_for(spec, nodes)) or devices
    for problem in requirements.problems(spec, devices, None):
        raise problem
    return launch([spec])


def _adapter_type(adapter: Mapping[str, Any]) -> str | None:
    """The PEFT type of a spec's adapter; for a saved one, of what its own config says it is."""
    if "path" not in adapter:
        return str(adapter["type"])
    config = labels.saved_config(adapter["path"]) or {}
    return str(config["peft_type"]).lower() if config.get("peft_type") else None
