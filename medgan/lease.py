"""Who may write a run: one command at a time, and of that command's workers only those that started last.

Terms are files `.lease/000001`, `.lease/000002`, ..., each made by a conditional create, so that of two contenders
one gets it; whoever has the highest is the holder, and every save asks. A command keeps writing a heartbeat beside
them. A second command that sees it move is refused; one that sees it stand still for STALE_S takes over. No clocks of
different hosts are compared.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable

import pyarrow.fs as pafs

from medgan.config import Refused
from medgan.data.shards import filesystem, told
from medgan.folder import Folder
from medgan.schemas import Holder

BEAT_S = 5.0
"""Between two heartbeats."""
STALE_S = 30.0
"""A heartbeat that stood still for so long is a dead command's."""
SETTLE_S = 2.0
"""On a store without a conditional create: within it every contender's claim is seen by all."""
READS = 500
"""How often a term that has just gone is looked for again."""
FOLDER = ".lease"
TERM = re.compile(r"[1-9][0-9]{6,11}|[0-9]{6}")
MOST_TERMS = 10**12 - 1


class Lost(RuntimeError):
    """Another command, or later workers of the same one, write the run now. One line."""


class Lease:
    """One holder's view of a run's lease. owner: the command; its workers have the same."""

    def __init__(self, folder: Folder, owner: str) -> None:
        self.folder, self.owner, self.term = folder, owner, 0
        self.mark = secrets.token_hex(8)
        """Tells this holder from every other, those of the same owner too."""

    def take(self, say: Callable[[str], None]) -> None:
        """Become the holder; where somebody else is, wait until their heartbeat is stale, and `say` so.

        Raises Refused where it moves.
        """
        while not self.renew():
            self._outwait(say)

    def renew(self) -> bool:
        """Become the holder in place of nobody or of the same owner; False where somebody else holds the run."""
        while True:
            top, holder = self._top()
            if holder and holder["owner"] != self.owner and self._beat_of(holder["owner"]) != b"ended":
                return False
            note = {"owner": self.owner, "mark": self.mark, "host": socket.gethostname(), "time": int(time.time())}
            if top >= MOST_TERMS:
                raise Refused(
                    f"{self.folder.location}/{FOLDER}: no term follows {top}; remove it, if nobody writes here"
                )
            if create(self.folder, f"{FOLDER}/{top + 1:06d}", json.dumps(note).encode()):
                self.term = top + 1
                for name in self.folder.names(FOLDER):  # what earlier holders left
                    if name.endswith(".beat"):
                        left = name != f"{self.owner}.beat"
                    else:
                        left = (found := TERM.match(name)) is None or int(found[0]) < self.term
                    if left:
                        self.folder.delete(f"{FOLDER}/{name}")
                return True

    def check(self) -> None:
        """Raises Lost where somebody else has become the holder."""
        top, holder = self._top()
        if holder is None or (top, holder["mark"]) != (self.term, self.mark):
            by = f"a command on {holder['host']}" if holder and holder["owner"] != self.owner else "later workers"
            raise Lost(f"{self.folder.location}: {by} took the run over, so nothing more is written here")

    def end(self) -> None:
        """Give the run up, if it is still this owner's; nothing of the lease is left."""
        _, holder = self._top()
        if holder and holder["owner"] == self.owner:
            self.folder.delete(FOLDER)

    def beat(self) -> None:
        self.folder.write(f"{FOLDER}/{self.owner}.beat", secrets.token_hex(8))

    def _top(self) -> tuple[int, dict | None]:
        """The highest term and what its holder wrote; 0 and None where there is none."""
        for _ in range(READS):
            terms = [int(name) for name in self.folder.names(FOLDER) if TERM.fullmatch(name)]
            if not terms:
                return 0, None
            try:
                return max(terms), self.folder.checked(Holder, f"{FOLDER}/{max(terms):06d}")
            except FileNotFoundError:  # the next holder has just removed it
                time.sleep(0.01)
        raise Refused(
            f"{self.folder.location}/{FOLDER}: its newest term cannot be read; remove it, if nobody writes here"
        )

    def _beat_of(self, owner: str) -> bytes | None:
        try:
            return self.folder.read(f"{FOLDER}/{owner}.beat")
        except FileNotFoundError:
            return None

    def _outwait(self, say: Callable[[str], None]) -> None:
        """Return when the holder's heartbeat stood still for STALE_S, or when the holder changed or ended."""
        _, holder = self._top()
        if holder is None:
            return
        kind, host = self.folder.kind, holder["host"]
        before, began, told = self._beat_of(holder["owner"]), time.monotonic(), False
        while (waited := time.monotonic() - began) < STALE_S:
            time.sleep(0.5)
            if self._top()[1] != holder:
                return
            if self._beat_of(holder["owner"]) != before:
                raise Refused(f"{self.folder.location}: another command, on {host}, writes this {kind}: stop it first")
            if waited > 2 * BEAT_S and not told:
                told = True
                say(f"the command that wrote this {kind}, on {host}, is silent: waiting {STALE_S:.0f} s in all")
        say(f"taking the {kind} over from the command on {host}")
        # Whoever takes over marks the dead holder's heartbeat, so that `renew` of any contender may go on.
        self.folder.write(f"{FOLDER}/{holder['owner']}.beat", "ended")


class Heartbeat:
    """Keeps a lease alive from a thread of its own while a command runs."""

    def __init__(self, folder: Folder, say: Callable[[str], None]) -> None:
        self.lease = Lease(folder, secrets.token_hex(8))
        self.say, self.over = say, threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> str:
        """The owner, for whoever writes in this command's name. Raises Refused."""
        try:
            self.lease.take(self.say)
            self.lease.beat()
        except OSError as error:
            raise Refused(f"--out {self.lease.folder.location}: cannot be written: {told(error)}") from None
        self.thread.start()
        return self.lease.owner

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()
        try:
            self.lease.end()
        except OSError as error:  # how the command ended matters more
            self.say(f"the lease of {self.lease.folder.location} cannot be given up: {error.strerror or error}")

    def _run(self) -> None:
        while not self.over.wait(BEAT_S):
            try:
                self.lease.beat()
            except OSError as error:  # the storage may come back; meanwhile nobody else can take over there either
                self.say(f"the heartbeat of {self.lease.folder.location} cannot be written: {error.strerror or error}")


def create(folder: Folder, name: str, content: bytes) -> bool:
    """Write a file if there is none of that name; of several that try at once, one does, and the others get False.

    A local disk and NFS have this as a hard link. Object stores do, but pyarrow does not offer it: there everybody
    puts a claim beside the name, waits until all claims must be visible, and the oldest by the store's own clock wins.
    Where two believe that they have, as one was held up on the way, the one that wrote last has: both wait and look.
    """
    fs, path = filesystem(folder.location)
    if isinstance(fs, pafs.LocalFileSystem):
        claim = f"{name}.{secrets.token_hex(8)}"
        folder.write(claim, content)
        try:
            os.link(f"{path}/{claim}", f"{path}/{name}")
        except FileExistsError:
            return False
        finally:
            folder.delete(claim)
        return True
    if folder.exists(name):
        return False
    mine = f"{name}.claim-{secrets.token_hex(8)}"
    folder.write(mine, content)
    time.sleep(SETTLE_S)
    below, _, base = name.rpartition("/")
    claims = [
        (entry.mtime_ns or 0, entry.base_name)
        for entry in fs.get_file_info(pafs.FileSelector(f"{path}/{below}"))
        if entry.base_name.startswith(f"{base}.claim-")
    ]
    own = next((time_ns for time_ns, claim in claims if mine.endswith(claim)), 0)
    # A claim that is much older was left by a contender that died.
    first = min((claim for claim in claims if own - claim[0] < STALE_S * 1e9), default=(0, ""))
    # Asked last: a winner writes the name before it takes its claim away.
    won = bool(first[1]) and mine.endswith(first[1]) and not folder.exists(name)
    if won:
        folder.write(name, content)
    folder.delete(mine)
    if not won:
        return False
    time.sleep(SETTLE_S)
    try:
        return folder.read(name) == content
    except FileNotFoundError:  # the next holder has already taken it away
        return False
