"""A dashboard without a browser: launches and cancels, by the pages' own code, what its standard input asks for.

Like a dashboard it starts a supervisor where it launches and finds none. Run as ``python -m tests.faults.dashboard``;
answers each line of JSON by one.
"""

from __future__ import annotations

import json
import sys

from app import state
from app.widgets import launching
from db import queue
from engine.spec import parse_spec


def main() -> None:
    for line in sys.stdin:
        asked = json.loads(line)
        if "cancel" in asked:
            with state.database().writing() as session:
                answer = queue.request_cancel(session, asked["cancel"])
        else:
            answer = launching.launch([parse_spec(document) for document in asked["specs"]], asked["sweep"])
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
