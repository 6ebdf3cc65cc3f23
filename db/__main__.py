"""``python -m db upgrade``: bring the configured database's schema up to date. Nothing else."""

from __future__ import annotations

import argparse
import sys

from db.session import DatabaseError, open_database


def main() -> int:
    """Run the command; 0 when the schema is current, 1 with one line on stderr when it cannot be."""
    parser = argparse.ArgumentParser(prog="python -m db", description="Look after PEFT Lab's database.")
    parser.add_argument("command", choices=["upgrade"], help="apply the migrations that are missing")
    parser.parse_args()
    try:
        open_database().close()
    except DatabaseError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
