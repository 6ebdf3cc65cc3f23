"""The dashboard's server: what pages need is imported and used once before the first of them is asked for.

``python -m app`` starts it. Each visit runs ``app/main.py``.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import logging
import pkgutil
import runpy
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pandas as pd
import streamlit as st
from starlette.middleware import Middleware

import app as pages
from app.assets import Assets

# Scripts, which are run for each visit and would draw nothing here.
_SCRIPTS = ("app.main", "app.server", "app.views")


def preload() -> None:
    """Import every module of the dashboard, draw one chart, and run the Runs page for nobody.

    Otherwise the first visit pays for it: SQLAlchemy, pandas and plotly take longer than any page, and a page takes a
    quarter longer the first time.
    """
    for name in _modules():
        importlib.import_module(name)
    # Not above: Streamlit's caches warn when they are made before the server.
    from app import figures

    points = pd.DataFrame({"run_id": 1, "group": "a", "adapter": "", "x": [1, 2], "value": [1.0, 2.0]})
    figures.lines(points, {}, title="", unit="s", x_title="").to_json()
    # The first element drawn takes 0.3 s, as Streamlit then looks for a console; a picture has it import PIL, too.
    st.image(str(Path(__file__).with_name("icon.svg")))
    # It only reads. What is wrong with it, or with the database, its visitors are told.
    with contextlib.suppress(Exception):
        runpy.run_path(str(Path(__file__).with_name("views") / "runs.py"))


def _modules() -> Iterator[str]:
    for module in pkgutil.walk_packages(pages.__path__, "app."):
        if not module.name.startswith(_SCRIPTS):
            yield module.name


@contextlib.asynccontextmanager
async def _ready(_server: st.App) -> AsyncIterator[None]:
    # Streamlit warns that nobody visits, which is so.
    logging.disable(logging.WARNING)
    try:
        preload()
    finally:
        logging.disable(logging.NOTSET)
    # Else the garbage collector looks through all that was imported, again and again: a tenth of a second each time.
    gc.collect()
    gc.freeze()
    yield


app = st.App("main.py", lifespan=_ready, middleware=[Middleware(Assets)])
