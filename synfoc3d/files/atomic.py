"""Writing files so that a reader, or a kill, never meets half a file."""

import os
from pathlib import Path
from uuid import uuid4


def atomic_write_text(path: Path, text: str) -> None:
    """Write ``text`` (UTF-8) to ``path``: afterwards the file holds all of it or what it held before.

    The text goes to a temporary file in the same folder, because only there a rename is one step. If writing fails, the
    temporary file is removed and ``path`` is untouched.

    Raises:
        OSError: the folder does not exist, is not writable, or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    try:
        # A plain open, not tempfile: temporary files of that module are readable by their owner only.
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
