"""Writing files and folders so that a reader, a kill or a full disk never leaves half of one."""

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from uuid import uuid4


@contextmanager
def naming(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Let errors of the operating system name ``path`` where they name no file at all, or a temporary one.

    Args:
        path: what was to be written.
        temporary: file or folder that stands in for it.
    """
    try:
        yield
    except OSError as error:
        named = [os.fsdecode(name) for name in (error.filename, error.filename2) if name is not None]
        if error.errno is None:  # of python's own making; with a name its text would be lost
            raise
        if not named or (temporary is not None and any(name.startswith(str(temporary)) for name in named)):
            error.filename, error.filename2 = str(path), None
        raise


@contextmanager
def replacing(path: Path, temporary: Path) -> Iterator[None]:
    """Let a temporary file that is written within take the place of ``path``; it goes where writing fails.

    Args:
        path: afterwards it is what was written, or what it was before.
        temporary: in the same folder, because only there a rename is one step.

    Raises:
        OSError: the folder does not exist, is not writable, or the disk is full; it names ``path``.
    """
    if path.is_dir():  # before anything else is replaced
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    try:
        with naming(path, temporary):
            yield
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def atomic_write_text(path: Path, text: str) -> None:
    """Write ``text`` (UTF-8) to ``path``: afterwards the file holds all of it or what it held before.

    Raises:
        OSError: see :func:`replacing`.
    """
    atomic_write_texts({path: text})


def atomic_write_texts(texts: Mapping[Path, str]) -> None:
    """Write files that belong together: none of them is replaced before all are written.

    Args:
        texts: content by path.

    Raises:
        OSError: see :func:`replacing`.
    """
    with ExitStack() as stack:
        for path, text in texts.items():
            temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
            stack.enter_context(replacing(path, temporary))
            # A plain open, not tempfile: temporary files of that module are readable by their owner only.
            with naming(path), temporary.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())


@contextmanager
def whole_folder(folder: Path, unless: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Make a folder, if it is not there; a new or empty one is left as it was where what is done within fails.

    Args:
        folder: with all folders above it that are missing; these go, too.
        unless: says after a failure whether there is something in it to keep.
    """
    missing = next((one for one in (*reversed(folder.parents), folder) if not one.exists()), None)
    empty = folder.is_dir() and not any(folder.iterdir())
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        if (missing or empty) and not unless():
            shutil.rmtree(missing or folder, ignore_errors=True)
            if empty:
                folder.mkdir()
        raise
