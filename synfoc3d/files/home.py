"""Paths that begin with ``~``."""

from pathlib import Path


def expand_home(path: str | Path) -> Path:
    """Return a path with the home folder in the place of ``~`` or ``~NAME``.

    Raises:
        ValueError: this machine knows no such user, or no home folder; the text is a sentence.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ValueError(f"{path} begins with the home folder of a user whom this machine does not know") from None
