"""Starts the dashboard: ``python -m app`` from the repository root, with options of ``streamlit run`` behind it."""

from __future__ import annotations

import sys
from pathlib import Path

from app import allocator

if __name__ == "__main__":
    # Before Streamlit is imported: what other threads have begun with is theirs for good.
    allocator.keep_memory_together()

    from streamlit.web import cli

    cli.main(["run", str(Path(__file__).with_name("server.py")), *sys.argv[1:]], prog_name="streamlit")
