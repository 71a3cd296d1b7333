"""Run a bad input in this process, and judge how the command line takes it."""

import contextlib
import io
import os
import shutil
import signal
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from inputs import BadInput, Place

from synfoc3d.files.layout import CHECKED_FILE

LIMIT = 120  # seconds, for a machine that is busy with other things
RESTORED = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", "scans")  # in which commands may leave something


class Hang(BaseException):
    """The time of an input is over; no ``except Exception`` catches it."""


@dataclass(frozen=True)
class Verdict:
    """How an input was taken.

    Attributes:
        outcome: ``sentence``, ``usage``, ``done``; or a finding: ``traceback``, ``hang``, ``partial``, ``accepted``.
        said: the sentence, or the end of the traceback.
    """

    outcome: str
    said: str = ""

    @property
    def is_finding(self) -> bool:
        """Whether something is to be mended."""
        return self.outcome in ("traceback", "hang", "partial", "accepted")


def judge(bad: BadInput, place: Place) -> Verdict:
    """Damage, run, judge and restore."""
    shutil.rmtree(place.out, ignore_errors=True)
    place.out.mkdir()
    content = bad.file.read_bytes() if bad.file is not None and bad.file.is_file() else None
    before = _listing(place)
    records = {file: file.read_bytes() for file in place.model.rglob("*.json")}  # which a training that goes on removes
    try:
        if bad.file is not None and bad.change is not None:
            bad.change(bad.file)
        with _variables(bad), _somewhere_deep(place), _time_limit():
            verdict = _run(bad)
    except Hang:
        verdict = Verdict("hang", f"more than {LIMIT} s")
    finally:
        if bad.file is not None:
            bad.file.unlink(missing_ok=True) if content is None else bad.file.write_bytes(content)
    left = _clean(place, before)
    for file, text in records.items():
        file.write_bytes(text)
    if verdict.outcome in ("sentence", "usage") and left and not _may_be_partial(bad, verdict):
        return Verdict("partial", f"left {', '.join(left[:5])}; said {verdict.said}")
    return verdict


def _run(bad: BadInput) -> Verdict:
    from synfoc3d.cli import main

    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main(bad.arguments)
    except SystemExit as end:
        return _of_exit(bad, end.code, out.getvalue(), err.getvalue())
    except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
        ours = [
            step
            for step in traceback.extract_tb(error.__traceback__)
            if "synfoc3d" in step.filename or "inference" in step.filename
        ]
        place = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "?"
        return Verdict("traceback", f"{type(error).__name__}: {' '.join(str(error).split())[:200]} ({place})")
    return (
        Verdict("accepted", out.getvalue()[-100:].strip())
        if bad.certain and bad.arguments[0] != "doctor"
        else Verdict("done")
    )


def _of_exit(bad: BadInput, code: object, out: str, err: str) -> Verdict:
    if code == 0 and bad.certain:
        return Verdict("accepted", out[-100:].strip())
    if code in (0, 2):
        return Verdict("usage" if code else "done")
    if "Traceback (most recent call last)" in err + out:
        return Verdict("traceback", err[-300:])
    if bad.arguments[0] == "doctor":
        return Verdict("done")
    head = f"synfoc3d {bad.arguments[0]}: "
    said = err[err.index(head) + len(head) :].strip() if head in err else ""
    if not said or "(more with --verbose)" in said or "see the output above" in said:
        return Verdict("traceback", f"no sentence: {said or err[-200:]}"[:400])
    return Verdict("sentence", said)


def _may_be_partial(bad: BadInput, verdict: Verdict) -> bool:
    """Cases that could be done are kept beside those that failed, and said so."""
    return " failed:" in verdict.said or bad.arguments[0] == "preprocess"


@contextlib.contextmanager
def _variables(bad: BadInput) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("SYNFOC3D_CONFIG", "SYNFOC3D_HOME"):
            patch.delenv(name, raising=False)
        for name, value in bad.variables.items():
            patch.delenv(name, raising=False) if value is None else patch.setenv(name, value)
        for name in ("nnUNet_n_proc_DA", "nnUNet_def_n_proc"):  # which the command line may write
            patch.setenv(name, os.environ.get(name, "1"))
        yield


@contextlib.contextmanager
def _somewhere_deep(place: Place) -> Iterator[None]:
    """Go where relative paths lead to nothing but the folder of outputs."""
    before, deep = os.getcwd(), place.out / "a" / "b" / "c"
    deep.mkdir(parents=True)
    os.chdir(deep)
    try:
        yield
    finally:
        os.chdir(before)
        for folder in (deep, deep.parent, deep.parent.parent):
            with contextlib.suppress(OSError):  # where a command left something
                folder.rmdir()


@contextlib.contextmanager
def _time_limit() -> Iterator[None]:
    def end(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(LIMIT)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _listing(place: Place) -> set[Path]:
    return {path for name in RESTORED for path in (place.root / name).rglob("*")}


def _clean(place: Place, before: set[Path]) -> list[str]:
    """Remove what a command left, and return it."""
    new = sorted(_listing(place) - before)
    # logs of nnU-Net, which say what went wrong, and what was found in files that are still the same
    kept = {path for path in new if path.name.startswith("training_log_") or path.name == CHECKED_FILE}
    left = sorted(place.out.rglob("*"))
    for path in reversed(new):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    return [str(path.relative_to(place.root)) for path in new if path not in kept] + [
        str(path.relative_to(place.out)) for path in left
    ]
