"""Sessions of a web application: who has logged in, kept for as long as they come back.

    python examples/session_store.py [--manager HOST:PORT]

    sessions = Sessions(store, ttl=1800)
    cookie = sessions.log_in("ann")
    sessions[cookie]  # {'user': 'ann'}, for another half an hour; KeyError: log in first
    sessions.change(cookie, cart=["apples"])
    del sessions[cookie]  # log out

Any instance of the application can answer any request, and a storage node may die: each session is
on several nodes. A session is JSON, never pickle: whoever can write to the store must not be able
to run code here.

Sliding expiry means that each look at a session stores it again, with a new time to live. A plain
``put`` there would be wrong: between the read and the put the user may log out, and the put would
bring the session back. ``compare_and_put`` by version does it only if nothing has happened in
between. That is also how ``change`` keeps two requests of one user from losing each other's
changes.
"""

from __future__ import annotations

import argparse
import json
import secrets
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import gtstore
from gtstore import Client, InvalidInput, OutcomeUnknown, StoredEntry, VersionMismatch
from gtstore.testing import Cluster, wait_until

Session = dict[str, Any]


class Sessions(Mapping[str, Session]):
    """The sessions by their cookies. Whoever reads one prolongs it, also by ``items()``.

    Args:
        ttl: seconds that a session lives after each look at it.
        prefix: what the keys begin with.
    """

    def __init__(self, store: Client, ttl: float, prefix: str = "session/") -> None:
        self._store = store
        self._ttl = ttl
        self._prefix = prefix

    def log_in(self, user: str) -> str:
        """Begin a session, and return its cookie, which nobody can guess."""
        cookie = secrets.token_urlsafe(32)
        self._store.put(self._prefix + cookie, json.dumps({"user": user}), ttl=self._ttl)
        return cookie

    def __getitem__(self, cookie: str) -> Session:
        """Return a session, which from now on has its whole time to live again."""
        return self.change(cookie)

    def change(self, cookie: str, /, **changes: Any) -> Session:
        """Set some of a session's items, and return all of them. KeyError: there is no session."""
        while True:
            entry = self._read(cookie)
            session: Session = json.loads(entry.value) | changes
            try:
                self._store.compare_and_put(
                    self._prefix + cookie,
                    json.dumps(session),
                    version=entry.version,
                    ttl=self._ttl,
                )
            except VersionMismatch:
                continue  # another request was faster, or the user has logged out: look again
            except OutcomeUnknown:
                if changes:
                    raise  # the caller may read, and see
            return session

    def __delitem__(self, cookie: str) -> None:
        """Log out. It is no error if the session is gone already."""
        self._store.delete(self._prefix + cookie)

    def __contains__(self, cookie: object) -> bool:
        """Whether there is a session; a look from here does not prolong it."""
        try:
            return isinstance(cookie, str) and bool(self._read(cookie))
        except KeyError:
            return False

    def __iter__(self) -> Iterator[str]:
        for key in self._store.scan_keys(self._prefix):
            yield key.decode().removeprefix(self._prefix)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _read(self, cookie: str) -> StoredEntry:
        try:
            entry = self._store.get_entry(self._prefix + cookie)
        except InvalidInput:  # browsers send anything: what cannot be a key is no cookie of ours
            entry = None
        if entry is None:
            raise KeyError(cookie)
        return entry


def demonstrate(store: Client, cluster: Cluster | None) -> bool:
    """Log in, look, change, log out; return whether all was as it should be."""
    prefix = f"demo-{secrets.token_hex(4)}/"
    sessions = Sessions(store, 1800, prefix)
    ann, bob = sessions.log_in("ann"), sessions.log_in("bob")
    print(f"ann and bob have logged in: {len(sessions)} sessions")
    print(f"ann puts something into her cart: {sessions.change(ann, cart=['apples'])}")
    if cluster:
        node = store.where(prefix + ann).owners[0]
        cluster.kill_node(node)
        print(f"the primary of ann's session, storage node {node}, was killed")
    found = [sessions.get(cookie) for cookie in (ann, bob)]
    print(f"the sessions now: {found}")
    del sessions[bob]
    print(f"bob has logged out; his session: {sessions.get(bob)}")
    sessions = Sessions(store, 0.2, prefix)
    print(f"the sessions shall live for 0.2 s only, from now on: {sessions[ann]}")
    wait_until(lambda: ann not in sessions, "the end of ann's session")
    print(f"ann stays away for longer; her session: {sessions.get(ann)}")
    return found == [{"user": "ann", "cart": ["apples"]}, {"user": "bob"}] and not sessions


def main() -> int:
    parser = argparse.ArgumentParser(description="Show web sessions on a GT Store cluster.")
    parser.add_argument("--manager", metavar="HOST:PORT", help="without it: a cluster of its own")
    manager = parser.parse_args().manager
    with ExitStack() as stack:
        cluster = None if manager else stack.enter_context(Cluster(nodes=3, replicas=2))
        store = stack.enter_context(gtstore.connect(cluster.address if cluster else manager))
        is_right = demonstrate(store, cluster)
    print("OK" if is_right else "FAILED")
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
