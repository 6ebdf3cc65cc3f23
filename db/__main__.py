"""``python -m db upgrade|backup|restore|copy``: look after the configured database, or copy one into another.

What each does is in ``db.backups`` and ``db.copying``.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import make_url

from db import backups
from db.session import DatabaseError, database_url, home, open_database, sqlite_file


def main() -> int:
    """Run the command; 0 when it is done, 1 with one line on stderr when it cannot be."""
    parser = argparse.ArgumentParser(prog="python -m db", description="Look after PEFT Lab's database.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    upgrade = commands.add_parser("upgrade", help="apply the migrations that are missing")
    upgrade.set_defaults(command=_upgrade)
    backup = commands.add_parser("backup", help="copy the database, also while it is in use, and print the copy's name")
    backup.set_defaults(command=_backup)
    restore = commands.add_parser("restore", help="put a backup in the database's place; the replaced one is kept")
    restore.add_argument("file", nargs="?", default="", help="a backup, or another database of PEFT Lab")
    restore.set_defaults(command=_restore)
    copy = commands.add_parser("copy", help="copy a whole lab into an empty database, such as one on PostgreSQL")
    copy.add_argument("source", metavar="SOURCE", help="a SQLite file, or a database's address (URL)")
    copy.add_argument("target", metavar="TARGET", help="an empty database's address, or a new SQLite file")
    copy.set_defaults(command=_copy)
    options = parser.parse_args()
    command: Callable[[argparse.Namespace], None] = options.command
    try:
        command(options)
    except DatabaseError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _upgrade(_options: argparse.Namespace) -> None:
    open_database().close()


def _backup(_options: argparse.Namespace) -> None:
    print(backups.back_up(_file()))


def _restore(options: argparse.Namespace) -> None:
    file = _file()
    if not options.file:
        newest = backups.newest(file)
        example = f"; the newest is FILE={shlex.quote(str(newest))}" if newest else f"; there is none for {file}"
        raise DatabaseError(f"restore: name a backup{example}")
    replaced = backups.restore(Path(options.file), file, home() / "supervisor.lock")
    # A backup of an older version is brought up to date here, where somebody sees it fail.
    open_database().close()
    print(f"Restored {file}; " + (f"the replaced database is {replaced}" if replaced else "there was none before"))


def _copy(options: argparse.Namespace) -> None:
    # Needs the models, which takes 0.2 s; the other commands do without.
    from db.copying import copy

    rows = copy(options.source, options.target)
    print("\n".join(f"{count:>12,} {name}" for name, count in rows.items()))
    print("Copied; every row was read back and is the same.")


def _file() -> Path:
    file = sqlite_file(make_url(database_url()))
    if file is None:
        raise DatabaseError("PEFT_LAB_DATABASE_URL: is not SQLite; use your database server's own backups")
    return file


if __name__ == "__main__":
    sys.exit(main())
