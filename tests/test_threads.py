"""Every thread of ours is supervised: what it raises is logged, and then the table of
docs/ARCHITECTURE.md says what happens. A test for each row."""

from __future__ import annotations

import ast
import io
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from gtstore import addresses, managerd, server, tap, threads, upkeep
from gtstore.committer import Committer
from gtstore.disk import DiskEngine
from gtstore.engine import MemoryEngine, Remembered
from gtstore.errors import StoreDamaged
from gtstore.log_store import LogStore
from gtstore.manager import Manager, ManagerOptions
from gtstore.membership import Membership
from gtstore.reactor import Reactor
from gtstore.server import FrameServer, TokenLock, on_message
from gtstore.testing import wait_until
from gtstore.threads import END, GO_ON, OVER, Supervised, supervised
from gtstore.wire.codec import encode
from gtstore.wire.messages import HASH_ADDITIVE, Join, Noted, Ping, Pong

from .forgetful_store import ForgetfulStore
from .peers import PONG, Talk

SOURCES = Path(threads.__file__).parent


class Once:
    """Raises at the first call that ``is_meant``, and is ``then`` what it stands for."""

    def __init__(
        self,
        then: Callable[..., Any],
        error: BaseException | None = None,
        is_meant: Callable[[], bool] = lambda: True,
    ) -> None:
        self.then = then
        self.error: BaseException = error or ZeroDivisionError("injected")
        self.is_meant = is_meant
        self.has_raised = False
        self.calls_after = 0

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        if not self.has_raised and self.is_meant():
            self.has_raised = True
            raise self.error
        self.calls_after += self.has_raised
        return self.then(*arguments, **options)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_AGAIN_S", 0.01)


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The exit codes with which threads have ended this process."""
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    return codes


def is_in(thread: str) -> Callable[[], bool]:
    return lambda: threading.current_thread().name.startswith(thread)


# --- the table -----------------------------------------------------------------------------------


def _calls(path: Path) -> Iterator[ast.Call]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield node


def test_nobody_else_starts_a_thread() -> None:
    """By construction: all threads come from threads.py."""
    kinds = {"Thread", "Timer", "start_new_thread", "ThreadPoolExecutor", "run_in_executor"}
    kinds |= {"to_thread", "ThreadingMixIn", "ThreadingTCPServer", "start_joinable_thread"}
    for path in SOURCES.rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        names = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
        names |= {node.id for node in nodes if isinstance(node, ast.Name)}
        allowed = {"start_new_thread"} if path.name == "threads.py" else set()
        assert names & kinds <= allowed, path


def test_the_table_has_every_thread() -> None:
    """Each thread that the sources start stands in ARCHITECTURE.md, with what happens when it
    raises."""
    found = set()
    count = 0
    for path in SOURCES.rglob("*.py"):
        for call in _calls(path):
            if path.name == "threads.py" or len(call.args) < 3:
                continue
            name, _, then = call.args[:3]
            if not (isinstance(then, ast.Name) and then.id in ("GO_ON", "END", "OVER")):
                continue
            count += 1
            if isinstance(name, ast.JoinedStr):
                (first, *_) = name.values
                assert isinstance(first, ast.Constant)
                found.add((f"{first.value}..", then.id))
            else:
                assert isinstance(name, ast.Constant)
                found.add((name.value, then.id))
    text = (SOURCES.parent / "docs" / "ARCHITECTURE.md").read_text()
    told = set()
    for names, then in re.findall(r"^\| [a-z`, ]+ \| (`.+?) \| (go on|end|over)\b", text, re.M):
        told |= {(name, then.upper().replace(" ", "_")) for name in re.findall("`(.+?)`", names)}
    assert found == told
    assert len(found) == count


# --- the supervisor ------------------------------------------------------------------------------


def test_a_thread_that_ends() -> None:
    thread = supervised("short", lambda: None, END)
    thread.join()
    assert not thread.is_alive()


def test_what_becomes_of_a_thread(exits: list[int], caplog: pytest.LogCaptureFixture) -> None:
    """Whatever it raises is in the log; and the rest is as its maker has chosen."""
    for error in (ZeroDivisionError("injected"), MemoryError(), SystemExit(3)):
        for then in (GO_ON, END, OVER):
            work = Once(lambda: None, error)
            supervised(f"the one that is to {then}", work, then).join()
            assert work.calls_after == (then == GO_ON)
            assert f"in the thread the one that is to {then}: " in caplog.text
            assert type(error).__name__ in caplog.text
    assert exits == [70, 71, 70]
    assert "memory is short in the thread" in caplog.text


def test_a_log_that_fails_hides_no_end(exits: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory may be short for the line, too."""
    monkeypatch.setattr(threads.logger, "critical", Once(print, MemoryError()))
    supervised("any", Once(print), END).join()
    assert exits == [70]


def test_a_thread_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "start_new_thread", Once(print, RuntimeError("no more threads")))
    thread = Supervised("any", print, OVER)
    with pytest.raises(RuntimeError, match="no more threads"):
        thread.start()
    assert not thread.is_alive()


def test_a_thread_that_does_not_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first step may need memory that is not there: it is not waited for for ever, and if it
    comes after all it does nothing."""
    late: list[Callable[[], None]] = []
    monkeypatch.setattr(threads, "start_new_thread", lambda run, _: late.append(run))
    done: list[bool] = []
    thread = Supervised("any", lambda: done.append(True), OVER)
    with pytest.raises(RuntimeError, match=r"the thread 'any' did not begin within 0.01 s"):
        thread.start(0.01)
    assert not thread.is_alive()
    late[0]()
    assert not done


# --- manager and nodes: the server ---------------------------------------------------------------


@pytest.fixture
def served() -> Iterator[FrameServer]:
    def on_ping(_: Ping) -> Pong:
        return PONG

    made = FrameServer("127.0.0.1", 0, on_message(on_ping))
    made.start()
    yield made
    made.drain()
    assert made.open_sockets == set()


def is_answered(served: FrameServer) -> bool:
    with Talk(served.port) as talk:
        talk.send(encode(Ping(), 1))
        return talk.reply() == (1, PONG)


@pytest.mark.parametrize("place", ["service_actions", "get_request", "_take_in"])
@pytest.mark.parametrize("error", [ZeroDivisionError("injected"), MemoryError(), SystemExit(1)])
def test_server(
    served: FrameServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    place: str,
    error: BaseException,
) -> None:
    """It goes on to accept."""
    broken = Once(getattr(served, place), error)
    monkeypatch.setattr(served, place, broken)
    if place != "service_actions":
        with Talk(served.port) as talk:
            wait_until(lambda: broken.has_raised, "the error")
            talk.sock.close()
    wait_until(lambda: broken.has_raised, "the error")
    assert is_answered(served)
    assert "in the thread server: it goes on" in caplog.text


def test_connection(
    served: FrameServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its connection is closed, and its place is free; the next one is served."""
    broken = Once(served.finish_request, SystemExit(1))
    monkeypatch.setattr(served, "finish_request", broken)
    with Talk(served.port) as talk:
        assert talk.reply() is None
    assert is_answered(served)
    wait_until(lambda: "in the thread connection from" in caplog.text, "its line")


@pytest.mark.parametrize(
    "error", [RuntimeError("can't start new thread"), MemoryError(), None], ids=repr
)
def test_a_connection_without_a_thread(
    served: FrameServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception | None,
) -> None:
    """Memory is short for a moment: this one is closed, and the next one is accepted. With None,
    the thread was started, and has no memory for its first step."""
    monkeypatch.setattr(server, "_BEGIN_TIMEOUT_S", 0.01)
    real = threads.start_new_thread
    if error is None:
        starts = iter([lambda *_: 1])
        monkeypatch.setattr(threads, "start_new_thread", lambda *a: next(starts, real)(*a))
    else:
        monkeypatch.setattr(threads, "start_new_thread", Once(real, error))
    with Talk(served.port) as talk:
        assert talk.reply() is None
    monkeypatch.setattr(server, "_BEGIN_TIMEOUT_S", 10)
    assert is_answered(served)
    assert "a connection is closed, no thread can serve it" in caplog.text


# --- the manager ---------------------------------------------------------------------------------


@pytest.fixture
def manager() -> Iterator[Manager]:
    """One with two nodes, which is started."""
    made = Manager(
        ManagerOptions(
            2, 2, "127.0.0.1", 0, 0, HASH_ADDITIVE, 50, True, False, 10, None, 1000, "error", "text"
        )
    )
    made.start()
    yield made
    made.stop()


def kill_and_await_return(manager: Manager) -> None:
    process = manager._processes[1]
    process.send_signal(signal.SIGKILL)
    wait_until(
        lambda: manager._registered[1].incarnation == process.incarnation + 1, "a new process"
    )


@pytest.mark.cluster
@pytest.mark.parametrize("place", ["_succeed", "_apply"])
def test_keeper(manager: Manager, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """It goes on where it was: the node is started again."""
    broken = Once(getattr(manager, place), is_meant=is_in("keeper of node 1"))
    monkeypatch.setattr(manager, place, broken)
    kill_and_await_return(manager)
    assert broken.has_raised
    kill_and_await_return(manager)


@pytest.mark.cluster
def test_publisher(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on: the next map is published."""
    broken = Once(manager._changed.wait_for, is_meant=is_in("publisher"))
    monkeypatch.setattr(manager._changed, "wait_for", broken)
    epoch = manager._published.map.epoch
    kill_and_await_return(manager)
    wait_until(lambda: manager._published.map.epoch > epoch and broken.has_raised, "a new map")


@pytest.mark.cluster
@pytest.mark.usefixtures("manager")
def test_prober(monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on to probe."""
    broken = Once(Membership.tick)
    monkeypatch.setattr(Membership, "tick", lambda *arguments: broken(*arguments))
    wait_until(lambda: broken.calls_after > 3, "more rounds of probes")


def test_commands(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What a command raises is its answer; an end of the reader itself is in the log."""
    monkeypatch.setattr(
        managerd, "open", lambda *_, **__: io.StringIO('{"stop": 1}\nx\n'), raising=False
    )

    class Broken:
        def stop_node(self, node: int) -> None:
            raise ZeroDivisionError(node)

        start_node = stop_node

    supervised("commands", partial(managerd.obey, Broken()), OVER).join()  # type: ignore[arg-type]
    lines = capsys.readouterr().out.splitlines()
    assert "internal error: ZeroDivisionError(1)" in lines[0]
    assert "this is no command: x" in lines[1]
    monkeypatch.setattr(managerd, "_answer", Once(print, BrokenPipeError()))
    supervised("commands", partial(managerd.obey, Broken()), OVER).join()  # type: ignore[arg-type]
    assert "in the thread commands: it is over" in caplog.text


# --- a node --------------------------------------------------------------------------------------


def test_reactor(exits: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The process ends."""
    reactor = Reactor(TokenLock(), {})
    monkeypatch.setattr(reactor, "_serve_ready", Once(print))
    reactor.start()
    reactor._thread.join()
    assert exits == [70]


def committer() -> tuple[Committer, ForgetfulStore, DiskEngine]:
    store = ForgetfulStore()
    engine = DiskEngine(store)
    lock = TokenLock()
    made = Committer(engine, store, lock, lambda _: Remembered(1, b"", 0, 0, 0), {})
    return made, store, engine


def test_committer(exits: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The process ends."""
    made, _, _ = committer()
    monkeypatch.setattr(made, "_do_next", Once(print, SystemExit(0)))
    made.start()
    made._thread.join()
    assert exits == [70]


def test_committer_without_memory(exits: list[int], caplog: pytest.LogCaptureFixture) -> None:
    """In the midst of a commit: the process ends, and the disk is not blamed."""
    made, store, engine = committer()
    store.before_commit = Once(lambda: None, MemoryError())
    engine.partition(0).entries[b"key"] = b"entry"
    made.start()
    made._thread.join()
    assert exits[:1] == [71]
    assert "memory is short in the thread committer: this process ends" in caplog.text
    assert "the disk failed" not in caplog.text


def test_syncer(exits: list[int], caplog: pytest.LogCaptureFixture) -> None:
    """The process ends."""
    made, store, _ = committer()
    store.before_commit = Once(lambda: None, MemoryError())
    made._syncer.start()
    made._to_sync.put({b"name": b"value"})
    made._syncer.join()
    assert exits == [71]
    assert "memory is short in the thread syncer: this process ends" in caplog.text


def test_flush(exits: list[int], tmp_path: Path) -> None:
    """The process ends; but what LMDB says is kept for the next commit (test_log_store.py)."""
    pytest.importorskip("lmdb")
    store = LogStore(tmp_path)
    store.commit({b"\0\0\0\0name": b"value"})
    store.refresh()
    store._salt = None  # type: ignore[assignment]
    store._start_flush().join()
    assert exits == [70]
    store._flush = None
    store.close()


def test_clear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is over, and nobody misses it; the same if it cannot be started."""
    pytest.importorskip("lmdb")
    store = LogStore(tmp_path)
    clear = Once(lambda _: None)
    monkeypatch.setattr("gtstore.log_store._clear", clear)
    for at in range(3):
        if at == 2:
            no_more = Once(threads.start_new_thread, RuntimeError("no more threads"))
            monkeypatch.setattr(threads, "start_new_thread", no_more)
        store.commit({b"\0\0\0\0%d" % at: b"value"})
        store.refresh()
        if at < 2:
            store._start_flush().join()
    store.refresh()
    wait_until(lambda: clear.has_raised and clear.calls_after == 1, "both")
    assert store.get(b"\0\0\0\0" + b"0") == b"value"
    store.close()


class Node:
    """As much of a node as upkeep's threads need, with nothing to do."""

    def __init__(self) -> None:
        self.node = 1
        self.is_suspended = False
        # Threads may come to these after a test, and what it had put in their place, has ended.
        self.row = None
        self.is_doubtful = False
        self.former = MemoryEngine().partition(0).former

    def __len__(self) -> int:
        return 1

    def __getitem__(self, _: int) -> Node:
        return self

    def suspend(self, _: int) -> int:
        self.is_suspended = True
        return 5

    def vouch(self, _: int) -> None:
        self.is_doubtful = False

    def resume(self, _: int) -> None:
        self.is_suspended = False


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> Iterator[upkeep.Upkeep]:
    monkeypatch.setattr(upkeep.copying, "pending", lambda _: {})
    monkeypatch.setattr(upkeep.copying, "let_go", lambda _: None)
    monkeypatch.setattr(upkeep, "_REPORT_AGAIN_S", 0.01)
    some: Any = Node()
    lock = TokenLock()
    made = upkeep.Upkeep(some, lambda: 0, lock, ("127.0.0.1", 1), b"token", lambda: None)
    monkeypatch.setattr(made, "_look_through", lambda _: (1, []))
    yield made
    lock.acquire()  # its threads go no further, and end with the tests


def test_copies(idle: upkeep.Upkeep, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on to look."""
    broken = Once(lambda _: {})
    monkeypatch.setattr(upkeep.copying, "pending", broken)
    monkeypatch.setattr(idle, "_settle_forever", lambda: None)
    idle.start()
    wait_until(lambda: broken.calls_after > 2, "more looks")


def test_copier(idle: upkeep.Upkeep, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it was at work with is free for the next one."""
    copier = upkeep._Copier(upkeep.Session(idle._locate))
    copier.is_at_work = True
    monkeypatch.setattr(idle, "_know_the_cluster", Once(print, SystemExit(1)))
    supervised("copier", partial(idle._copy_from, copier, [], {}), OVER).join()
    assert not copier.is_at_work


def test_a_copier_that_cannot_be_started(
    idle: upkeep.Upkeep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is tried again."""
    replicas: Any = idle._replicas
    replicas.join_epoch = 7
    monkeypatch.setattr(upkeep.copying, "pending", lambda _: {0: 2})
    monkeypatch.setattr(idle, "_settle_forever", lambda: None)
    begun = threading.Event()
    monkeypatch.setattr(idle, "_copy_from", lambda *_: begun.set())
    broken = Once(threads.start_new_thread, RuntimeError("no more threads"), is_in("copies"))
    monkeypatch.setattr(threads, "start_new_thread", broken)
    idle.start()
    idle.on_new_map()
    assert begun.wait(20)
    assert broken.has_raised


def test_settler(idle: upkeep.Upkeep, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on to look."""
    broken = Once(upkeep.Source)
    monkeypatch.setattr(upkeep, "Source", broken)
    monkeypatch.setattr(idle, "_copy_forever", lambda: None)
    idle.start()
    wait_until(lambda: broken.calls_after > 0, "the next look")


def test_scrub(idle: upkeep.Upkeep, monkeypatch: pytest.MonkeyPatch) -> None:
    """It begins again."""
    broken = Once(lambda *_: None)
    monkeypatch.setattr(idle, "_scrub", broken)
    monkeypatch.setattr(idle, "_scrub_share", 1)
    monkeypatch.setattr(upkeep, "_SCRUB_PAUSE_S", 0.01)
    for name in ("_copy_forever", "_settle_forever"):
        monkeypatch.setattr(idle, name, lambda: None)
    idle.start()
    wait_until(lambda: broken.calls_after > 1, "another round")
    monkeypatch.setattr(idle, "_scrub", lambda *_: threading.Event().wait())


def test_gatherer(idle: upkeep.Upkeep, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on to look, as long as something is doubtful."""
    broken = Once(lambda _: [])
    monkeypatch.setattr(upkeep.copying, "to_gather", broken)
    monkeypatch.setattr(idle, "_is_doubtful", lambda: broken.calls_after < 2)
    for name in ("_copy_forever", "_settle_forever"):
        monkeypatch.setattr(idle, name, lambda: None)
    idle.start()
    wait_until(lambda: broken.calls_after == 2, "more looks")


def test_what_was_gathered_is_reported_again(
    idle: upkeep.Upkeep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """N2a: the disk was full at that moment, for example. Nothing is doubtful any more, but as long
    as the manager does not know that, the partition is not open."""
    join = Join(0, 5)
    todo = [[0]]
    reported = []

    def gather(*_: Any) -> Iterator[Any]:
        yield from ()
        return join

    def report(_: bytes, node: int, joins: list[Join], *__: Any) -> Iterator[Any]:
        reported.append((node, tuple(joins)))
        yield from ()

    monkeypatch.setattr(upkeep.copying, "to_gather", lambda _: todo.pop() if todo else [])
    monkeypatch.setattr(upkeep.copying, "gather", gather)
    monkeypatch.setattr(upkeep.copying, "report", report)
    monkeypatch.setattr(idle, "_know_the_cluster", lambda _: None)
    monkeypatch.setattr(idle, "_flush", Once(lambda: None, ConnectionAbortedError("no room")))
    monkeypatch.setattr(idle, "_is_doubtful", lambda: bool(todo))
    idle._gather()
    assert reported == [(1, (join,))]


def test_leaver(idle: upkeep.Upkeep, monkeypatch: pytest.MonkeyPatch) -> None:
    """It asks again."""
    broken = Once(lambda *_: Noted())
    monkeypatch.setattr(upkeep, "call_once", broken)
    assert idle.on_damage(StoreDamaged(0, b"key"))
    wait_until(lambda: broken.calls_after == 1, "another LEAVE")


def test_a_leaver_that_cannot_be_started(
    idle: upkeep.Upkeep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The partition is answered for as before, until the damage is found again."""
    replicas: Any = idle._replicas
    broken = Once(threads.start_new_thread, RuntimeError("no more threads"))
    monkeypatch.setattr(threads, "start_new_thread", broken)
    monkeypatch.setattr(upkeep, "call_once", lambda *_: Noted())
    with pytest.raises(RuntimeError, match="no more threads"):
        idle.on_damage(StoreDamaged(0, b"key"))
    assert not replicas.is_suspended
    assert idle.on_damage(StoreDamaged(0, b"key"))
    assert replicas.is_suspended


# --- clients -------------------------------------------------------------------------------------


def test_look_up(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The one that waits is told, or waits for its deadline; the next one asks anew."""
    monkeypatch.setattr(addresses, "_ASK_AGAIN_S", 0.0)
    for error, text in ((MemoryError(), ""), (SystemExit(1), "in the thread look up a-name")):
        caplog.clear()
        monkeypatch.setattr(addresses, "_resolve", Once(lambda _: [], error))
        lookup = addresses.Lookup("a-name")
        lookup.ask()
        if text:
            wait_until(lambda text=text: text in caplog.text, "its line")  # type: ignore[misc]
            lookup.ask()
        wait_until(lambda lookup=lookup: lookup.is_done, "its end")  # type: ignore[misc]
    monkeypatch.setattr(threads, "start_new_thread", Once(print, RuntimeError("no more threads")))
    with pytest.raises(OSError, match="no more threads"):
        addresses.Lookup("a-name").ask()


# --- gtclient ------------------------------------------------------------------------------------


def test_tap(served: FrameServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on to accept."""
    lines: list[str] = []
    taps = tap.Taps(lines.append)
    made = taps.open("a server", ("127.0.0.1", served.port), "127.0.0.1")
    monkeypatch.setattr(made, "show", Once(made.show, SystemExit(1)))
    monkeypatch.setattr(
        threads, "start_new_thread", Once(threads.start_new_thread, RuntimeError(), is_in("tap of"))
    )
    for is_served in (False, False, True):  # without a thread; with one that raises; as usual
        with Talk(made.port) as talk:
            talk.send(encode(Ping(), 1))
            try:
                assert (talk.reply() == (1, PONG)) is is_served
            except ConnectionResetError:
                assert not is_served
