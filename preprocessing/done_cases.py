"""What is known of the cases in a folder while some are made: of which raw files they are, and what they hold."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from synfoc3d.files.case_record import CaseRecord, FileFacts
from synfoc3d.files.origins import Origin, read_origins, write_origins

WRITE_EVERY = (
    5.0  # seconds; both files hold all cases, and writing them after each would take the square of their number
)


class DoneCases:
    """The cases of a folder that are done, written down every few seconds.

    Args:
        folder: of the preprocessed cases.
        origins: of those that are done.
    """

    def __init__(self, folder: Path, origins: Mapping[str, Origin]) -> None:
        self._folder = folder
        self._origins = dict(origins)
        self._record = CaseRecord(folder)
        self._written, self._is_behind = time.monotonic(), read_origins(folder) != self._origins

    def add(self, case: str, origin: Origin, facts: Mapping[str, FileFacts]) -> None:
        """Take down a case that was just made; see :func:`~synfoc3d.files.case_record.facts_of`."""
        self._record.note(case, facts)
        self._origins[case] = origin
        self._is_behind = True
        if time.monotonic() - self._written >= WRITE_EVERY:
            self.write()

    def write(self) -> None:
        """Write what is new; what a kill takes with it is not believed, and made again."""
        if self._is_behind:
            self._record.save()  # first: what a case holds is known of every one that is believed
            write_origins(self._folder, self._origins)
        self._written, self._is_behind = time.monotonic(), False


@contextmanager
def noting(folder: Path, origins: Mapping[str, Origin]) -> Iterator[DoneCases]:
    """Let cases be added within; however it ends, short of a kill, all are written down.

    Args:
        folder: of the preprocessed cases.
        origins: of those that are done; written at once, so that no other is believed from now on.
    """
    cases = DoneCases(folder, origins)
    cases.write()
    try:
        yield cases
    finally:
        cases.write()
