"""A PostgreSQL server of the tests' own: found on this machine, started in a private folder, gone at the end.

It listens on a socket in that folder only, which nobody else may enter, so that it needs no password and no port.
Nothing of a server that is at work on this machine is touched.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from sqlalchemy import NullPool, create_engine
from sqlalchemy.exc import OperationalError

USER = "lab"
# Where Debian puts the server, which is not on the path.
DEBIAN = Path("/usr/lib/postgresql")
_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1
#: For tests, to which it does not matter what a power cut would lose.
CARELESS = ("fsync=off", "full_page_writes=off", "synchronous_commit=off", "shared_buffers=32MB")


def why_not() -> str | None:
    """Why no server can be started here; None where one can."""
    if _binaries() is None:
        return "PostgreSQL's server (initdb and postgres) is not installed"
    if os.geteuid() == 0 and _account() is None:
        return "PostgreSQL does not run as root, and there is no account postgres or nobody to run it"
    return None


class Server:
    """A server that runs until it is stopped, with databases that whoever may enter its folder can use."""

    def __init__(self, *settings: str) -> None:
        """Make an empty cluster and start its server.

        Args:
            settings: as in ``postgresql.conf``, such as "fsync=off".
        """
        binaries = _binaries()
        assert binaries is not None
        # Not among pytest's folders: those are closed to the account that runs the server where root runs the tests.
        # Short, because the address of a socket may have no more than 108 characters.
        self._folder = Path(tempfile.mkdtemp(prefix="peft-lab-", dir="/tmp"))
        account = _account() if os.geteuid() == 0 else None
        if account is not None:
            os.chown(self._folder, account.pw_uid, account.pw_gid)
        as_whom = {} if account is None else {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        cluster, log = self._folder / "cluster", self._folder / "log"
        how = ("--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync", f"--username={USER}")
        options = (f"unix_socket_directories={self._folder}", "listen_addresses=", *settings)
        try:
            with log.open("wb") as output:
                start = {"cwd": self._folder, "stdout": output, "stderr": output, **as_whom}
                subprocess.run([binaries / "initdb", "-D", cluster, *how], check=True, **start)
                arguments = [part for option in options for part in ("-c", option)]
                command = [binaries / "postgres", "-D", cluster, *arguments]
                self._process = subprocess.Popen(command, preexec_fn=_end_with_parent, **start)
        except BaseException:
            shutil.rmtree(self._folder)
            raise
        self._numbers = itertools.count(1)
        self._wait_until_it_answers()

    def url(self, database: str) -> str:
        """The address of one of its databases."""
        return f"postgresql+psycopg://{USER}@/{database}?host={self._folder}"

    def create(self, template: str = "template0", options: str = "") -> str:
        """Make a database, a copy of another one that nobody has open; returns its name."""
        name = f"lab_{next(self._numbers)}"
        self._execute(f"CREATE DATABASE {name} TEMPLATE {template} {options}")
        return name

    def drop(self, database: str) -> None:
        """Remove a database, also under those who have it open."""
        self._execute(f"DROP DATABASE {database} WITH (FORCE)")

    def stop(self) -> None:
        """End the server at once and remove all that it kept."""
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait(timeout=30)
        shutil.rmtree(self._folder)

    def _execute(self, statement: str) -> None:
        # Not kept open, so that this database can be copied.
        engine = create_engine(self.url("postgres"), isolation_level="AUTOCOMMIT", poolclass=NullPool)
        with engine.connect() as connection:
            connection.exec_driver_sql(statement)

    def _wait_until_it_answers(self) -> None:
        deadline_s = time.monotonic() + 60
        while True:
            try:
                return self._execute("SELECT 1")
            except OperationalError:
                if self._process.poll() is not None or time.monotonic() > deadline_s:
                    self.stop()
                    raise
            time.sleep(0.05)


def _end_with_parent() -> None:
    """Have the kernel end the server when the tests are killed and cannot."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGQUIT)


def _binaries() -> Path | None:
    """The folder of the server's programs, of the newest version that is installed."""
    on_path = shutil.which("postgres")
    found = [Path(on_path).resolve().parent] if on_path else []
    found += sorted((path.parent for path in DEBIAN.glob("*/bin/postgres")), key=lambda one: -float(one.parent.name))
    return next((folder for folder in found if (folder / "initdb").exists()), None)


def _account() -> pwd.struct_passwd | None:
    """The account that runs the server where root runs the tests."""
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    return None
