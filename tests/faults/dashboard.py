"""A dashboard without a browser: launches and cancels, by the pages' own code, what its standard input asks for.

Like a dashboard it starts a supervisor where it launches and finds none. Run as ``python -m tests.faults.dashboard``;
answers each line of JSON by one.
"""

from __future__ import annotations

import json
import sys

from app import people
from app.access import Connection
from app.widgets import launching, progress
from engine.spec import parse_spec


def main() -> None:
    # Whoever asks is on this machine, as the browser of whoever may launch is.
    here = Connection("127.0.0.1", "127.0.0.1", {"host": "127.0.0.1:8501", "origin": "http://127.0.0.1:8501"})
    people.connection = lambda: here
    for line in sys.stdin:
        asked = json.loads(line)
        if "cancel" in asked:
            progress.cancel(asked["cancel"])
            answer = asked["cancel"]
        else:
            answer = launching.launch([parse_spec(document) for document in asked["specs"]], asked["sweep"])
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
