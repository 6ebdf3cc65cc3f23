"""System: the machine, who works on the queue, what is stored, and what may disturb a measurement."""

from __future__ import annotations

import importlib.metadata
import os
import platform

import pandas as pd
import streamlit as st

from app import formatting, people, places, state
from app.host import Host, look
from app.host_warnings import host_warnings, supervisor_warning
from app.supervision import SupervisorState
from app.widgets import progress
from app.widgets.downloads import table_downloads
from app.widgets.metrics import Card, cards
from app.widgets.pruning import prune_section
from db import actions, queue, runs
from db.session import DatabaseSize, home, schema_revisions
from engine.result import STATES

#: Looking at every process takes some milliseconds of CPU, which must not show in a measurement.
LOOK_EVERY_S = 10
#: The table itself keeps all.
DEEDS_SHOWN = 200
PACKAGES = ("torch", "transformers", "peft", "accelerate", "safetensors", "numpy", "streamlit", "sqlalchemy")


@st.cache_data(ttl=LOOK_EVERY_S / 2, show_spinner=False, max_entries=8)
def looked_at(folder: str, own_pids: tuple[int, ...]) -> Host:
    """One look for all who have the page open."""
    return look(home(), own_pids)


def host() -> Host:
    """The machine now, with PEFT Lab's own processes left out of its programs."""
    signs = state.supervisor_signs()
    with state.database().reading() as session:
        workers = [run.worker_pid for run in queue.running(session)]
    own = {os.getpid(), *(pid for pid in workers if pid), *([signs.pid] if signs and signs.pid else [])}
    return looked_at(str(home()), tuple(sorted(own)))


def supervisor_card(supervisor: SupervisorState, heartbeat_at: float | None, *, waits: bool) -> Card:
    """Whether someone works on the queue or waits for the database, and the last sign of it."""
    texts = {"running": "Ready", "starting": "Starting", "stopped": "Stopped"}
    # The file that carries the heartbeat may be older than the supervisor that is about to take it.
    is_told = heartbeat_at is not None and supervisor != "starting"
    return Card(
        "Supervisor",
        "Waiting" if waits else texts[supervisor],
        f"heartbeat {formatting.ago(heartbeat_at, state.now_s())}" if is_told else "no heartbeat yet",
        help="Takes runs from the queue and watches their workers; it ends when nothing was queued for 15 minutes.",
        is_bad=waits or supervisor == "stopped",
    )


def database_card(size: DatabaseSize | None) -> Card:
    """What is stored and how much of it is room for more."""
    if size is None or size.log_bytes is None or size.reusable_bytes is None:
        on_disk = formatting.DASH if size is None else formatting.size(size.file_bytes)
        return Card("Database", on_disk, f"on {state.database().software()[0]}")
    return Card(
        "Database",
        formatting.size(size.file_bytes + size.log_bytes),
        f"{formatting.size(size.log_bytes)} in the WAL",
        help="The file and the write-ahead log (WAL) of the latest changes beside it. "
        f"{formatting.size(size.reusable_bytes)} of the file are free for new rows.",
    )


def free_card(label: str, free_bytes: int, all_bytes: int) -> Card:
    """How much is left of how much."""
    return Card(label, formatting.size(free_bytes), f"of {formatting.size(all_bytes)}")


def supervisor_problem(supervisor: SupervisorState, heartbeat_at: float | None, trouble: str) -> str | None:
    """What keeps the queue from being worked on, as a sentence; None where nothing does or the badge says it."""
    if trouble:
        return formatting.sentence(trouble)
    if supervisor != "running" or heartbeat_at is None:
        return None
    return supervisor_warning(heartbeat_at, state.now_s())


def warnings_shown(texts: list[str]) -> None:
    """What may disturb a measurement, or that nothing does."""
    if texts:
        st.warning(
            "\n".join(f"- {formatting.plain(text)}" for text in texts),
            title="What may disturb measurements",
            icon=":material/warning:",
        )
    else:
        st.badge("Nothing seen that would disturb a measurement", icon=":material/check_circle:", color="green")


@st.fragment(run_every=LOOK_EVERY_S)
def live() -> None:
    """Warnings, numbers and runs by state, kept up to date."""
    supervisor = state.ensure_supervisor()
    signs = state.supervisor_signs()
    heartbeat_at = signs.heartbeat_at if signs else None
    machine = host()
    with state.database().reading() as session:
        counts = queue.counts_by_state(session)
    trouble = state.supervisor_trouble() if supervisor == "running" else ""
    if supervisor == "stopped":
        progress.supervisor_badge()
    if problem := supervisor_problem(supervisor, heartbeat_at, trouble):
        st.error(formatting.plain(problem), title="The queue waits", icon=":material/pause_circle:")
    warnings_shown(host_warnings(machine))
    cards(
        [
            supervisor_card(supervisor, heartbeat_at, waits=bool(trouble)),
            Card(
                "Free memory", formatting.size(machine.available_bytes), f"of {formatting.size(machine.memory_bytes)}"
            ),
            Card("Free disk", formatting.size(machine.disk_free_bytes), f"of {formatting.size(machine.disk_bytes)}"),
            database_card(state.database().size()),
        ]
    )
    runs_by_state(counts)


def runs_by_state(counts: dict[str, int]) -> None:
    """How many runs are in each state, archived ones too."""
    st.subheader("Runs by state", anchor=False)
    if not counts:
        with st.container(border=True, horizontal_alignment="center"):
            st.markdown("No run is stored yet; choose what to measure first.", text_alignment="center")
            if st.button("Launch a run", key="to_launch", type="primary", icon=":material/rocket_launch:"):
                st.switch_page("views/launch.py")
        return
    with st.container(horizontal=True):
        for name in STATES:
            # The queue's depth is worth knowing at 0, too.
            if name in counts or name in ("queued", "running"):
                st.badge(
                    f"{formatting.state_text(name)} {counts.get(name, 0)}",
                    icon=formatting.state_icon(name),
                    color=formatting.state_colour(name),  # type: ignore[arg-type]
                )


def nodes_table() -> None:
    """The machines that runs can be measured on, with what is installed there; one alone says it all below."""
    nodes = state.nodes()
    if len(nodes) < 2:
        return
    st.subheader("Nodes", anchor=False)
    frame = pd.DataFrame(
        [
            {
                "node": node.name,
                "state": node.state,
                "problem": node.problem or "",
                "seen_at": node.seen_at,
                "is_head": node.is_head,
                **{name: node.versions.get(name, formatting.DASH) for name in ("python", *places.COMPARED_VERSIONS)},
            }
            for node in nodes
        ]
    )
    words = {"ready": "Ready", "differs": "Other versions", "broken": "Takes no runs", "lost": "Lost"}
    shown = frame.assign(
        state=frame["state"].map(words),
        node=[f"{node.name} (head)" if node.is_head else node.name for node in nodes],
        seen_at=[formatting.ago(node.seen_at, state.now_s()) for node in nodes],
    ).drop(columns="is_head")
    st.dataframe(
        shown,
        hide_index=True,
        alt="Nodes with their state, versions and when they were last seen",
        column_config={
            "node": "Node",
            "state": st.column_config.MultiselectColumn(
                "State",
                options=list(words.values()),
                color=["green", "orange", "red", "red"],
                help="A node with other versions than the head takes only runs that name it.",
            ),
            "problem": "Problem",
            "seen_at": "Seen",
            "python": "Python",
        },
    )
    table_downloads(frame, "nodes")


def devices_table() -> None:
    """What runs can be measured on."""
    st.subheader("Devices", anchor=False)
    nodes = state.nodes()
    placed = [(node.name, places.device_of(device)) for node in nodes for device in node.devices]
    frame = pd.DataFrame(
        [
            {
                "node": node,
                "device": device.id,
                "name": device.name,
                "memory_bytes": device.memory_bytes,
                "driver": device.driver,
                "dtypes": ", ".join(device.dtypes),
            }
            for node, device in placed or [("", device) for device in state.devices()]
        ]
    )
    shown = frame.assign(
        memory_bytes=frame["memory_bytes"].map(formatting.size), driver=frame["driver"].fillna(formatting.DASH)
    )
    st.dataframe(
        shown if len(nodes) > 1 else shown.drop(columns="node"),
        hide_index=True,
        alt="Devices with memory and driver",
        column_config={
            "node": "Node",
            "device": "Device",
            "name": "Name",
            "memory_bytes": "Memory",
            "driver": "Driver",
            "dtypes": "Data types",
        },
    )
    table_downloads(frame, "devices")


def versions() -> dict[str, str]:
    """Of what is installed here; nothing of it is loaded for that."""
    found = {"Python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = formatting.DASH
    return {
        **found,
        **dict([state.database().software()]),
        "database schema": schema_revisions()[-1],
        "system": f"{platform.system()} {platform.release()}",
    }


def worker_settings() -> dict[str, str] | None:
    """How the workers' allocator and threads are set, as the newest run recorded it; None before the first run."""
    with state.database().reading() as session:
        environment = runs.latest_environment(session)
    if environment is None:
        return None
    variables = environment.get("variables") or {}
    found = {str(name): str(value) for name, value in variables.items()}
    for name in ("threads", "transparent_huge_pages"):
        if environment.get(name) is not None:
            found[name.replace("_", " ")] = str(environment[name])
    return found or None


def software() -> None:
    """Versions, and allocator settings beside them."""
    here, settings = versions(), worker_settings()
    left, right = st.columns(2, gap="large")
    with left:
        st.subheader("Versions", anchor=False)
        st.table(escaped(here), border="horizontal", alt="Versions of what is installed")
    with right:
        st.subheader("Allocator settings", anchor=False)
        if settings is None:
            st.caption("The first run that is measured here records what its worker had.")
        else:
            st.table(escaped(settings), border="horizontal", alt="Allocator settings of workers")
            st.caption("As the newest run recorded them.")
    rows = [{"group": "version", "name": name, "value": value} for name, value in here.items()]
    rows += [{"group": "allocator", "name": name, "value": value} for name, value in (settings or {}).items()]
    table_downloads(pd.DataFrame(rows), "versions_and_settings")


def deeds() -> None:
    """What people did here last. Whoever may only look is told no names."""
    st.subheader("Who did what", anchor=False)
    with state.database().reading() as session:
        rows = actions.recent(session, limit=DEEDS_SHOWN)
    if not rows:
        st.caption("Every launch, cancel, edit, import and deletion is recorded here; there was none yet.")
        return
    frame = pd.DataFrame(
        [
            {
                "when": formatting.moment(row.done_at, state.zone()),
                "who": row.person,
                "what": row.action,
                "runs": row.run_ids,
                "details": row.detail,
            }
            for row in rows
        ]
    )
    if not people.visitor().may_change:
        frame = frame.drop(columns="who")
    st.dataframe(
        frame,
        hide_index=True,
        height="content" if len(rows) <= 8 else 320,
        alt="What people launched, cancelled, changed, imported and deleted, newest first",
        column_config={
            "when": "When",
            "who": "Who",
            "what": "What",
            "runs": "Runs",
            "details": st.column_config.TextColumn("Details", width="large"),
        },
    )
    table_downloads(frame, "actions")


def escaped(facts: dict[str, str]) -> dict[str, str]:
    """Names and values as plain text, because tables read Markdown."""
    return {formatting.plain(name): formatting.plain(value) for name, value in facts.items()}


st.title("System")
live()
nodes_table()
devices_table()
software()
deeds()
if people.visitor().may_change:
    prune_section()
