"""The one exception a user's mistake raises, suggestions for misspelled names, and what the system's errors mean."""

import difflib
import errno
import os
from collections.abc import Iterable, Mapping


class UserError(Exception):
    """A mistake of the user: its text is one sentence saying what is wrong, with which file, and what to do.

    The command line prints the text alone and exits with status 1; library users catch it as any exception.
    """


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a hint for a misspelled ``name``: the closest of the ``known`` names, or all of them.

    Args:
        name: what the user wrote.
        known: the names that would have been accepted.

    Returns:
        A clause that starts with a space, to be put behind a sentence.
    """
    known = sorted(known)
    if not known:
        return " There is none to choose from."
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else f" Known: {', '.join(known)}."


def cases_failed(failures: Mapping[str, str], total: int, done: str) -> UserError:
    """Return the error with which a run over many cases ends if some failed: what was done, and why each case was not.

    Args:
        failures: the sentence that says what is wrong, by case.
        total: number of cases there were.
        done: what happened to the others, such as ``segmented``.
    """
    head = f"{total - len(failures)} of {total} cases {done}, {len(failures)} failed:"
    return UserError("\n  ".join([head, *(f"{case}: {reason}" for case, reason in failures.items())]))


WHAT_TO_DO = {
    errno.ENOSPC: "its disk is full: make room, or name a place on another one",
    errno.EDQUOT: "this user's share of its disk is used up: make room, or name a place on another one",
    errno.EFBIG: "files may not become that large here: raise the limit (ulimit -f), or name another place",
    errno.EACCES: "this user may not: change its permissions, or name another place",
    errno.EPERM: "this user may not: change its permissions, or name another place",
    errno.EROFS: "its disk may only be read: name another place",
    errno.ENOTDIR: "a part of its path is a file and no folder: name another place",
    errno.EEXIST: "something else has its name: remove that, or name another place",
    errno.EISDIR: "it is a folder and no file: remove it, or give another name",
    errno.ENOTEMPTY: "it is a folder that is not empty: remove it, or give another name",
    errno.ENOENT: "it, or the folder it should lie in, does not exist: see that it is there",
    errno.ENAMETOOLONG: "its name is too long: give a shorter one",
    errno.ELOOP: "its links lead in a circle: name the file itself",
    errno.EXDEV: "it would have to move to another disk: name a place on the same one",
    errno.EIO: "its disk fails: look after the disk, or name a place on another one",
    errno.ESTALE: "its network folder has changed meanwhile: run the command again",
    errno.EMFILE: "too many files are open: raise the limit (ulimit -n), or give fewer worker processes",
    errno.ENFILE: "too many files are open on this machine: give fewer worker processes",
    errno.ENOMEM: "no memory is left: give fewer worker processes, or close other programs",
    errno.EAGAIN: "no more processes may be started: give fewer worker processes",
}
NOT_WRITTEN = ("PytorchStreamWriter", "inline_container.cc", "Parent directory", "creating the NDArray")
"""What RuntimeErrors of torch and blosc2 speak of where the system cannot write a file; they do not say why."""


def system_sentence(error: BaseException) -> str | None:
    """Say what an error of the operating system means and what to do: which file, in one sentence.

    Args:
        error: an ``OSError``; or what torch or blosc2 raises in its place when a file cannot be written.

    Returns:
        None for any other error.
    """
    if isinstance(error, OSError):
        reason = WHAT_TO_DO.get(error.errno or 0, error.strerror or " ".join(str(error).split()) or "no reason is told")
        file = error.filename2 or error.filename  # of two, the second is what a file was to become
        if file is None:
            return f"A file cannot be read or written: {reason}."
        return f"{os.fsdecode(file) if isinstance(file, bytes) else file} cannot be read or written: {reason}."
    if isinstance(error, RuntimeError) and any(text in str(error) for text in NOT_WRITTEN):
        return "A file cannot be written: see that its folder is there, may be written to, and that its disk has room."
    return None
