"""One process at a time in a folder, also where several machines share its file system."""

import contextlib
import json
import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from time import sleep, strftime, time
from uuid import uuid4

from synfoc3d.errors import UserError

HEARTBEAT = 20.0  # seconds between two signs of life
SILENCE = 300.0  # seconds without one, after which a process that cannot be asked counts as dead


class Taken(UserError):
    """Another process holds a lock."""


@dataclass(frozen=True)
class Owner:
    """The process that holds a lock.

    Attributes:
        token: tells this lock from any other.
        host: name of its machine, for a person.
        machine: tells where its number means something: a start of a machine, and a container on it.
        pid: its number there.
        born: when it began, in the kernel's count, as numbers are used again; empty where the system does not tell.
        since: when it took the lock, for a person.
    """

    token: str
    host: str
    machine: str
    pid: int
    born: str
    since: str

    def is_dead(self) -> bool | None:
        """Return whether the process has ended; None where it cannot be asked, as on another machine."""
        if not self.machine or self.machine != _machine():
            return None
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:  # it lives, and is another user's
            return False
        return bool(self.born) and self.born != _birth(self.pid)


def this_process() -> Owner:
    """Describe this process as the owner of a new lock."""
    pid = os.getpid()
    since = strftime("%Y-%m-%d %H:%M:%S")
    return Owner(uuid4().hex, socket.gethostname(), _machine(), pid, _birth(pid), since)


def _machine() -> str:
    """Return what tells this start of this machine and its container from all others; empty where unknown."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
    # elsewhere names of machines must do; on Windows asking for a process would end it
    return "" if sys.platform == "win32" else socket.gethostname()


def _birth(pid: int) -> str:
    """Return when a process began, in the kernel's count; ``ended`` for one that only waits to be buried."""
    with contextlib.suppress(OSError):
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return "ended" if status[0] in "ZX" else status[19]
    return ""


class Lock:
    """A file that is there as long as a process works.

    Its time shows that its owner lives, where it cannot be asked. Times are compared with that of another new file in
    the same folder, as the clocks of machines differ.

    Args:
        file: the lock.
        doing: what nobody else may do meanwhile, for the message: ``trains in ...``.
        owner: who holds it, from :func:`this_process`, where something else bears its token as well.
    """

    def __init__(self, file: Path, doing: str, owner: Owner | None = None) -> None:
        self.file, self.doing = file, doing
        self.owner = owner or this_process()
        self._ended = threading.Event()

    @contextmanager
    def held(self) -> Iterator["Lock"]:
        """Hold the lock.

        Raises:
            Taken: another process holds it, as far as one can know.
        """
        self._take()
        heart = threading.Thread(target=self._beat, daemon=True)
        heart.start()
        try:
            yield self
        finally:
            self._ended.set()
            heart.join()
            if read_owner(self.file) == self.owner:
                self.file.unlink(missing_ok=True)

    def check(self) -> None:
        """Check that the lock is still this process's, before something is written.

        Raises:
            UserError: another process took it for dead, as after a long sleep of this machine, and works there now.
        """
        holder = read_owner(self.file)
        if holder != self.owner:
            who = f"process {holder.pid} on {holder.host}" if holder else "somebody"
            raise UserError(f"{who} has taken {self.file} from this process, which stops: two would mix their results.")

    def holder(self) -> Owner | None:
        """Return who holds the lock and seems to live; None where nobody does.

        Only to show, or to choose what to try: by the clock of this machine where the owner cannot be asked.
        """
        holder = read_owner(self.file)
        dead = holder.is_dead() if holder else True
        if dead is None:
            beat = self._last_beat()
            dead = beat is None or time() - beat > SILENCE
        return None if dead else holder

    def wait_for_sign(self) -> Owner | None:
        """Return who holds the lock and surely lives, or None as soon as nobody seems to.

        Waits for the next sign of life of an owner that cannot be asked, or until it has been silent for too long.
        """
        first = self._last_beat()
        while (holder := self.holder()) is not None and holder.is_dead() is None and self._last_beat() == first:
            sleep(1)
        return holder

    def _last_beat(self) -> float | None:
        """Return when the owner gave its last sign of life, seconds since the epoch; None where there is no lock."""
        with contextlib.suppress(FileNotFoundError):
            return self.file.stat().st_mtime
        return None

    def _take(self) -> None:
        own = self.file.with_name(f"{self.file.name}.{self.owner.token}")
        try:
            own.write_text(json.dumps(asdict(self.owner)) + "\n", encoding="utf-8")
            while not linked(own, self.file):
                holder = read_owner(self.file)
                if not is_stale(self.file, holder, own):
                    raise Taken(self._refusal(holder))
                self._clear_away(holder)
        finally:
            own.unlink(missing_ok=True)

    def _clear_away(self, holder: Owner | None) -> None:
        """Remove a dead process's lock, and not one that another process has put in its place meanwhile."""
        aside = self.file.with_name(f"{self.file.name}.{self.owner.token}.stale")
        with contextlib.suppress(FileNotFoundError):
            os.replace(self.file, aside)
            if read_owner(aside) != holder:
                linked(aside, self.file)
            aside.unlink()

    def _refusal(self, holder: Owner | None) -> str:
        who = f"Process {holder.pid} on {holder.host}" if holder else "Another process"
        since = f" since {holder.since}" if holder else ""
        return (
            f"{who} {self.doing}{since}: wait until it is done, or end it first; if it does not run any more, delete "
            f"{self.file}."
        )

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT):
            with contextlib.suppress(OSError):
                if read_owner(self.file) == self.owner:
                    os.utime(self.file)


def is_stale(file: Path, holder: Owner | None, clock: Path | None) -> bool:
    """Return whether nobody works behind a lock.

    Args:
        file: the lock.
        holder: whom it names; None where it cannot be understood.
        clock: a file of this process in the same file system, which is given the present time; None, where it may not
            write there, trusts this machine's clock.
    """
    dead = holder.is_dead() if holder else None
    if dead is not None:
        return dead
    with contextlib.suppress(FileNotFoundError):
        if clock is not None:
            os.utime(clock)
        now = time() if clock is None else clock.stat().st_mtime
        return now - file.stat().st_mtime > SILENCE
    return True


def read_owner(file: Path) -> Owner | None:
    """Read a lock; None where there is none, or it cannot be understood."""
    try:
        return Owner(**json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def linked(source: Path, target: Path) -> bool:
    """Give a file a second name in one step, with all its content; return whether the name was free."""
    try:
        os.link(source, target)
    except FileExistsError:
        return False
    except OSError:  # a file system without links
        return _copied(source, target)
    return True


def _copied(source: Path, target: Path) -> bool:
    """Write a file's content under another name; return whether that was free. On a full disk nothing of it stays."""
    content = source.read_bytes()
    try:
        file = target.open("xb")
    except FileExistsError:
        return False
    try:
        with file:
            file.write(content)
    except OSError:
        target.unlink()
        raise
    return True
