"""What keeps a supervisor from its work just now, in a file of its home, as the database may be what is in trouble.

The file keeps its room once it is there and is written in place, which a full disk still allows. Where the home folder
cannot be written at all, whoever would read the file can see that himself.
"""

from __future__ import annotations

import os
from pathlib import Path

from engine.secrets import masked

TROUBLE_FILE = "supervisor.trouble"
_ROOM_BYTES = 1000


def tell(home: Path, sentence: str) -> bool:
    """Put this in the place of what was told before; an empty one says that it is over. False if it cannot be told."""
    try:
        descriptor = os.open(home / TROUBLE_FILE, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.pwrite(descriptor, masked(sentence).encode()[:_ROOM_BYTES].ljust(_ROOM_BYTES), 0)
        finally:
            os.close(descriptor)
    except OSError:
        return False
    return True
