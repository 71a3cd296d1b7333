"""Many small pieces of work shared out over processes and machines, by files in a folder that all of them see.

A call founds a share: a folder with ``work.json``, which says what is to do. Workers take one item after another: a
claim is a file of which only one can be there, made as a second name of the worker's own lock, whose time its heartbeat
keeps going for all claims at once. No claim is ever removed or replaced: an item of a worker that has stopped is taken
by the claim of the next number. So two workers never have the same item, and no work is lost with a worker.

An item is finished when its result files are there. One that killed its workers again and again is given up, and one of
a worker that died is tried again with nothing beside it, as nobody knows which of the worker's items killed it.
"""

import contextlib
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from synfoc3d.errors import UserError
from synfoc3d.files.atomic import atomic_write_text
from synfoc3d.files.locks import Lock, Owner, Taken, is_stale, linked, read_owner, this_process
from synfoc3d.files.shared_work import WORK_FILE, Item, Work, finished_items, listed, read_work, write_work

MOST_DEATHS = 3  # workers that may die with an item before it is given up
AGAIN_AFTER = 0.2  # seconds until a folder that somebody else founds or leaves is looked at again
MEMBERS, CLAIMS, FAILED = "members", "claims", "failed"
PARTIAL, RESULTS, LOGS = "partial", "results", "logs"  # for what workers write
CALLER, WORKER = "caller", "worker"


@dataclass(frozen=True)
class State:
    """How far a share is.

    Attributes:
        total: number of items.
        finished: how many are finished.
        failed: names of those that are given up.
        running: who does the others that somebody does; None for an instant where that cannot be read yet.
        free: names of the others, which anybody may take.
        deaths: how often a worker died over one of the items that are not finished.
        finished_before: how many were finished when the share was founded.
        seconds: since then.
    """

    total: int
    finished: int
    failed: frozenset[str]
    running: Mapping[str, Owner | None]
    free: tuple[str, ...]
    deaths: int
    finished_before: int
    seconds: float

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to do."""
        return not self.running and not self.free

    @property
    def left(self) -> int:
        """How many items are neither finished nor given up."""
        return len(self.running) + len(self.free)

    @property
    def per_hour(self) -> float:
        """How many items were finished or given up in an hour so far."""
        ended = self.finished - self.finished_before + len(self.failed)
        return 3600 * ended / max(self.seconds, 1e-3)

    @property
    def seconds_left(self) -> float | None:
        """Seconds that the rest will take at this rate; None as long as nothing tells."""
        return 3600 * self.left / self.per_hour if self.per_hour else None


class Share:
    """The folder of a share, as one process sees it.

    Args:
        folder: that holds work.json.

    Raises:
        UserError: it does not, or the file is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.work = read_work(folder)
        self._own: Lock | None = None
        self._stopped: dict[str, bool] = {}  # by token: whether a worker that has stopped died

    @contextmanager
    def member(self, role: str) -> Iterator[None]:
        """Be seen as a living caller or worker of the share, from all machines.

        Args:
            role: CALLER or WORKER.
        """
        owner = this_process()
        file = self.folder / MEMBERS / f"{role}-{owner.token}"
        with Lock(file, "shares out work", owner).held() as self._own:
            try:
                yield
            finally:
                self._own = None

    def take(self, *, alone: bool) -> Iterator[Item]:
        """Take free items, one for each step of the iteration, until there are none; within :meth:`member` only.

        Args:
            alone: take those over which a worker died, of which each must be done before the next step; else the
                others, which may be taken ahead.
        """
        assert self._own is not None
        attempts, ended = self._attempts(), self.ended()
        first = int(self._own.owner.token, 16) % max(len(self.work.items), 1)  # not all want the same one
        for item in (*self.work.items[first:], *self.work.items[:first]):
            number = attempts[item.name]
            if item.name in ended or not self._is_free(item.name, number):
                continue
            deaths = self._deaths(item.name, number)
            if deaths >= MOST_DEATHS:
                self.give_up(item.name, _killer(deaths))
            elif alone == (deaths > 0) and not self._claim(item.name, number + 1):
                # somebody has been here, and perhaps at the next ones
                attempts, ended = self._attempts(), self.ended()
            elif alone == (deaths > 0) and (number == 0 or item.name not in self.ended()):
                yield item

    def aside(self) -> Path:
        """Make a folder for what this member is writing, on the disk of the share; within :meth:`member` only.

        It goes when another share is founded here. So what is moved from there to its place is of this share, also
        where its writer slept so long that it was taken for dead.
        """
        assert self._own is not None
        folder = self.folder / PARTIAL / self._own.owner.token
        folder.mkdir()
        return folder

    def check(self) -> None:
        """Check that this member is still one, before it writes into the folder of the share.

        Raises:
            UserError: it was taken for dead, and another share was founded here.
        """
        assert self._own is not None
        self._own.check()

    def give_up(self, name: str, reason: str) -> None:
        """Note why an item cannot be done; within :meth:`member` only.

        Raises:
            UserError: see :meth:`check`.
        """
        self.check()
        atomic_write_text(self.folder / FAILED / name, reason)

    def failures(self) -> dict[str, str]:
        """Return why items were given up, by name, in their order."""
        failed = self._failed() - self._finished()
        return {item.name: self.failure(item.name) for item in self.work.items if item.name in failed}

    def failure(self, name: str) -> str:
        """Return why an item was given up."""
        return (self.folder / FAILED / name).read_text(encoding="utf-8")

    def ended(self) -> frozenset[str]:
        """Return the names of the items that are finished or given up."""
        return self._finished() | self._failed()

    def state(self) -> State:
        """Look how far the share is."""
        attempts, finished, failed = self._attempts(), self._finished(), self._failed()
        running: dict[str, Owner | None] = {}
        free, deaths = list[str](), 0
        for item in self.work.items:
            if item.name in finished or item.name in failed:
                continue
            number = attempts[item.name]
            deaths += self._deaths(item.name, number)
            if self._is_free(item.name, number):
                free.append(item.name)
            else:
                running[item.name] = read_owner(self._claim_file(item.name, number))
        if any(attempts[name] for name in free):  # whose worker may have ended in order since it was looked for results
            finished, failed = self._finished(), self._failed()
            free = [name for name in free if name not in finished and name not in failed]
        return State(
            len(self.work.items),
            len(finished),
            failed - finished,
            running,
            tuple(free),
            deaths,
            self.work.finished_before,
            time.time() - self.work.since,
        )

    def is_alive(self) -> bool:
        """Return whether any caller or worker is at it."""
        members = self.folder / MEMBERS
        with self._clock() as clock:
            return any(
                not is_stale(members / name, read_owner(members / name), clock)
                for name in listed(members)
                if self._own is None or name != self._own.file.name
            )

    def _finished(self) -> frozenset[str]:
        return finished_items(self.work.items)

    def _failed(self) -> frozenset[str]:
        return frozenset(listed(self.folder / FAILED))

    def _attempts(self) -> Counter[str]:
        """Return how often each item was claimed."""
        return Counter(name.rpartition(".")[0] for name in listed(self.folder / CLAIMS))

    def _claim_file(self, name: str, number: int) -> Path:
        return self.folder / CLAIMS / f"{name}.{number}"

    def _claim(self, name: str, number: int) -> bool:
        """Claim an item; return whether nobody else did."""
        assert self._own is not None
        self.check()
        return linked(self._own.file, self._claim_file(name, number))

    def _is_free(self, name: str, number: int) -> bool:
        """Return whether the worker of the last claim has stopped, or there is none."""
        if number == 0:
            return True
        file = self._claim_file(name, number)
        if owner := read_owner(file):
            return self._has_stopped(owner)
        with self._clock() as clock:  # it is being written, or its writer died at that
            return is_stale(file, None, clock)

    def _deaths(self, name: str, number: int) -> int:
        """Return how many of the workers that claimed an item have died."""
        owners = [read_owner(self._claim_file(name, one)) for one in range(1, number + 1)]
        return sum(self._has_stopped(owner) and self._stopped[owner.token] for owner in owners if owner)

    def _has_stopped(self, owner: Owner) -> bool:
        """Return whether a worker does not work any more; one that ended in order has taken its lock away."""
        if owner.token not in self._stopped:
            file = self.folder / MEMBERS / f"{WORKER}-{owner.token}"
            if not file.exists():
                self._stopped[owner.token] = False
            else:
                with self._clock() as clock:
                    if is_stale(file, read_owner(file), clock):
                        self._stopped[owner.token] = True
        return owner.token in self._stopped

    @contextmanager
    def _clock(self) -> Iterator[Path | None]:
        """Hold a file by whose time that of others is judged: this process's lock, if it has one."""
        if self._own is not None:
            yield self._own.file
            return
        file = self.folder / f".{this_process().token}"
        try:
            file.touch()
        except OSError:  # one may only read
            yield None
            return
        try:
            yield file
        finally:
            file.unlink(missing_ok=True)


@dataclass
class Terms:
    """On what terms a call may found or join a share.

    Attributes:
        work: what it has to do.
        difference: says in a clause how the way of another call's work differs, or "" where it does not.
        begin: called before anybody works, with the names of the items whose results an interrupted call left, made in
            the same way of the same files; results of all others are no results.
    """

    work: Work
    difference: Callable[[Work], str]
    begin: Callable[[frozenset[str]], None]


@contextmanager
def shared(folder: Path, terms: Terms) -> Iterator[Share]:
    """Found a share, or join that of calls that are going on; the last one that leaves a finished share removes it.

    Args:
        folder: of the share. What an interrupted call has finished stays so; what failed there is tried again.
        terms: on which.

    Raises:
        UserError: another call that is alive does something else there.
    """
    with contextlib.ExitStack() as membership:
        with _entrance(folder):
            _found(folder, terms)
            share = Share(folder)
            membership.enter_context(share.member(CALLER))
        yield share
    with _entrance(folder):
        if folder.is_dir() and share.state().is_over and not share.is_alive():
            shutil.rmtree(folder)


def end_sharing(folder: Path) -> None:
    """Forget the share of a call that was interrupted.

    Raises:
        UserError: somebody is at it, as far as one can know.
    """
    if not (folder / WORK_FILE).is_file():
        return
    if Share(folder).is_alive():
        raise UserError(
            f"Other processes work on {folder.parent} and share it out in {folder.name}: wait until they are done, or "
            "join them with the same line and --on."
        )
    shutil.rmtree(folder)


def _found(folder: Path, terms: Terms) -> None:
    """Write what is to do, unless others that are alive have done so; see :func:`shared`."""
    kept: frozenset[str] = frozenset()
    if (folder / WORK_FILE).is_file():
        others = Share(folder)
        difference = _difference(terms, others.work)
        kept = frozenset() if difference else terms.work.unchanged(others.work)
        if others.is_alive():
            if not difference and not len(kept) == len(terms.work.items) == len(others.work.items):
                difference = "on other cases, or on these as they were before a change"
            if difference:
                raise UserError(
                    f"Other processes work on {folder.parent}, {difference}: wait until they are done, or name another "
                    "place with -o."
                )
            return
    terms.begin(kept)
    for part in (MEMBERS, CLAIMS, FAILED, PARTIAL):
        shutil.rmtree(folder / part, ignore_errors=True)
    for part in (MEMBERS, CLAIMS, FAILED, PARTIAL, RESULTS):
        (folder / part).mkdir(parents=True, exist_ok=True)
    write_work(folder, terms.work)


def _difference(terms: Terms, other: Work) -> str:
    return "and at something else" if other.kind != terms.work.kind else terms.difference(other)


@contextmanager
def _entrance(folder: Path) -> Iterator[None]:
    """Hold the lock that lets one process at a time found or leave a share; wait for it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(Lock(folder.with_name(f"{folder.name}.lock"), "shares out work").held())
                break
            except Taken:
                time.sleep(AGAIN_AFTER)
        yield


def _killer(deaths: int) -> str:
    return (
        f"{deaths} processes that worked on it were killed, the last {deaths - 1} with nothing beside it, most likely "
        "because memory ran out: use machines with more of it."
    )
