"""The one exception a user's mistake raises, and suggestions for misspelled names."""

import difflib
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
