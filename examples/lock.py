"""A lock that several programs share: a key whose value expires if its holder does not renew it.

    python examples/lock.py [--manager HOST:PORT]

    lock = Lock(store, "report", ttl=10)
    with lock:
        lock.renew()  # now and then, well before 10 seconds have passed
        write_report(fence=lock.fence)

How it works: to acquire the lock is to store a token of one's own where no value is, with a time to
live. To renew it is to store the same token again, where it still stands. The store has no removal
that compares, and a plain ``delete`` could remove the lock of whoever has acquired it meanwhile; so
to release it is to replace one's own token by RELEASED, which counts as no value to those who want
the lock. A token, drawn anew each time, says more than its version: it is still one's own after a
renewal whose outcome is unknown.

What it does NOT promise:

- That only one holder acts at a time. A holder that is paused for longer than the ttl (by the
  system, a debugger, a slow network) does not know that the lock is another's by now, and nothing
  in the store can stop it. So a resource that must not be harmed has to help: it takes the fence,
  keeps the highest one that it has seen, and refuses lower ones. The fence is the version under
  which the lock was acquired, and those of later holders are always higher.
- That the ttl is exact: it may be longer, though not shorter. The holder looks at its own clock.
- Fairness. Whoever asks at the right moment gets it; others may wait for long.
- That the lock outlives its data. If all nodes that hold the key die together and have no disks, it
  is free.
- That an error means failure. After OutcomeUnknown of ``acquire`` the lock may be held by a token
  that nobody knows; it is free again after the ttl.
"""

from __future__ import annotations

import argparse
import random
import secrets
import sys
import threading
import time
from contextlib import ExitStack

import gtstore
from gtstore import Client, Version, VersionMismatch
from gtstore.testing import Cluster

RELEASED = b"released"
_PAUSE_S = 0.02


class NotHeld(Exception):
    """The lock is not, or no longer, this object's."""


class Lock:
    """One holder's side of a lock; each thread and each program has an object of its own.

    Args:
        ttl: seconds after which the lock is free if its holder does not renew it.
    """

    def __init__(self, store: Client, name: str, ttl: float) -> None:
        self._store = store
        self._key = f"lock/{name}"
        self._ttl = ttl
        self._token = b""
        self.fence = Version(0, 0)
        """Of the last time when it was acquired: what a resource compares."""

    def try_acquire(self) -> bool:
        """Acquire the lock if it is free; return whether it was."""
        token = secrets.token_bytes(16)
        for free in (None, RELEASED):
            try:
                result = self._store.compare_and_put(self._key, token, expected=free, ttl=self._ttl)
            except VersionMismatch:
                continue
            self._token, self.fence = token, result.version
            return True
        return False

    def acquire(self) -> None:
        """Wait until the lock is free, and acquire it."""
        while not self.try_acquire():
            # By chance, or else those who wait would all come at the same moments.
            time.sleep(random.uniform(_PAUSE_S / 2, _PAUSE_S))

    def renew(self) -> None:
        """Hold the lock for another ttl, from now on. Raises NotHeld if it is another's or nobody's
        by now: then stop."""
        self._replace(self._token)

    def release(self) -> None:
        """Free the lock. Raises NotHeld, and changes nothing, if it is not this object's any more:
        then others may have been at work at the same time."""
        self._replace(RELEASED)

    def _replace(self, value: bytes) -> None:
        try:
            self._store.compare_and_put(self._key, value, expected=self._token, ttl=self._ttl)
        except VersionMismatch as error:
            raise NotHeld(f"{self._key} is not held under fence {self.fence}") from error

    def __enter__(self) -> Lock:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class Register:
    """A resource that helps: it takes no write of a holder that another has followed."""

    def __init__(self) -> None:
        self.number = 0
        self._highest = Version(0, 0)

    def write(self, number: int, fence: Version) -> bool:
        if fence < self._highest:
            return False
        self.number, self._highest = number, fence
        return True


def count_together(manager: str, name: str, register: Register) -> None:
    """Workers add to the same number by reading and writing, which only a lock makes right."""

    def work() -> None:
        with gtstore.connect(manager) as store:
            lock = Lock(store, name, ttl=10)
            for _ in range(20):
                with lock:
                    register.write(register.number + 1, lock.fence)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    print(f"4 workers have added 1, 20 times each: {register.number}")


def pause_too_long(manager: str, name: str, register: Register) -> bool:
    """A holder that sleeps through its ttl; return whether it has done no harm."""
    with gtstore.connect(manager) as store:
        slow, quick = Lock(store, name, ttl=0.2), Lock(store, name, ttl=10)
        slow.acquire()
        print("one holder pauses for longer than its ttl of 0.2 s, and another one waits")
        quick.acquire()
        is_taken = register.write(1000, quick.fence)
        is_refused = not register.write(-1, slow.fence)
        print(f"the former holder goes on: its write is {'refused' if is_refused else 'taken'}")
        try:
            slow.release()
            is_kept = False
        except NotHeld as error:
            is_kept = not Lock(store, name, ttl=10).try_acquire()
            print(f"it releases the lock: {error}; the other one still holds it")
        quick.release()
    return is_taken and is_refused and is_kept


def main() -> int:
    parser = argparse.ArgumentParser(description="Show a lock on a GT Store cluster.")
    parser.add_argument("--manager", metavar="HOST:PORT", help="without it: a cluster of its own")
    manager = parser.parse_args().manager
    name, register = f"demo-{secrets.token_hex(4)}", Register()
    with ExitStack() as stack:
        manager = manager or stack.enter_context(Cluster(nodes=3, replicas=2)).address
        count_together(manager, name, register)
        is_right = register.number == 80 and pause_too_long(manager, name, register)
    print("OK" if is_right else "FAILED")
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
