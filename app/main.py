"""Entry of the dashboard: page settings, navigation, and a supervisor that runs. Pages are in ``app/views``.

Run by ``app/server.py`` for each visit. Loads no torch.
"""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from app import state
from app.formatting import plain
from app.people import NotAllowed
from app.widgets import acting, presenting
from db.session import DatabaseError

st.set_page_config(page_title="PEFT Lab", page_icon=str(Path(__file__).with_name("icon.svg")), layout="wide")

try:
    state.database()
except DatabaseError as error:
    st.error(plain(str(error)), icon=":material/database:")
    st.stop()

MEASURING = [
    st.Page(
        "views/overview.py",
        title="Overview",
        icon=":material/home:",
        help="What adapters cost on this machine: attaching, merging, training and generating.",
        default=True,
    ),
    st.Page(
        "views/cases.py",
        title="Cases",
        icon=":material/fact_check:",
        help="Five published claims, and what this machine says of them.",
    ),
    st.Page(
        "views/launch.py",
        title="Launch",
        icon=":material/rocket_launch:",
        help="Choose what to measure and put it in the queue.",
    ),
    st.Page(
        "views/queue.py",
        title="Queue",
        icon=":material/hourglass_top:",
        help="What runs now, what waits, and what just ended.",
    ),
    st.Page(
        "views/runs.py",
        title="Runs",
        icon=":material/table_rows:",
        help="Every stored run: filter, select, compare, download.",
    ),
    st.Page(
        "views/compare.py",
        title="Compare",
        icon=":material/compare_arrows:",
        help="Which of several runs is faster or smaller, and how sure that is.",
    ),
    st.Page(
        "views/merge_files.py",
        title="Merge files",
        icon=":material/merge:",
        help="Merge an adapter on disk into a model on disk, however large.",
    ),
    st.Page(
        "views/system.py",
        title="System",
        icon=":material/monitor_heart:",
        help="Devices, versions, disk, the supervisor, and what may disturb a measurement.",
    ),
    st.Page("views/case.py", title="Case", icon=":material/fact_check:", visibility="hidden"),
    st.Page("views/run.py", title="Run", icon=":material/analytics:", visibility="hidden"),
]
PREDICTING = [
    st.Page(
        "views/predict.py",
        title="Peak memory",
        icon=":material/online_prediction:",
        help="How much memory a job will take, before anything runs and for cards that are not here.",
    ),
    st.Page(
        "views/fit.py",
        title="What fits",
        icon=":material/fit_screen:",
        help="Which ways of training fit on which cards, how far they go, and what to change first.",
    ),
    st.Page(
        "views/accuracy.py",
        title="Accuracy",
        icon=":material/target:",
        help="How far predicted peaks are from measured ones, over the stored runs.",
    ),
]
page = st.navigation(
    # Pages under no heading come first, the others in a menu of their own.
    {"": MEASURING, "Predict": PREDICTING},
    position="hidden" if presenting.is_on() else "top",
)
state.ensure_supervisor()
acting.who()
try:
    page.run()
except NotAllowed as refusal:
    st.error(plain(str(refusal)), icon=":material/lock:")
except DatabaseError as error:
    # Damaged or replaced while it was open. The next visit opens, and so checks, what is there then.
    state.forget_database()
    st.error(plain(str(error)), icon=":material/database:")
