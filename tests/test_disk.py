"""disk.py: what is staged, shown, committed, and found after a crash."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gtstore.disk import (
    DiskEngine,
    doubted,
    marked,
    marks_on,
    remembered_joins,
    sealed,
    unsealed,
)
from gtstore.engine import Partition, Remembered
from gtstore.errors import RecordDamaged, StoreDamaged
from gtstore.wire.messages import MARKS_MAX, Join

from .forgetful_store import ForgetfulStore

NOTHING = Remembered(0, b"", 0, 0, 0)


class Disk:
    """An engine, its store, and what its partitions are remembered by."""

    def __init__(self, store: ForgetfulStore | None = None, partitions: int = 3) -> None:
        self.store = store or ForgetfulStore()
        self.engine = DiskEngine(self.store)
        self.partitions: list[Partition] = [self.engine.partition(p) for p in range(partitions)]
        self.remembered = dict.fromkeys(range(partitions), NOTHING)
        self.depends: list[int] = []
        self.engine.on_depend = self.depends.append

    def take(self) -> Any:
        return self.engine.take(self.remembered.__getitem__)

    def commit(self) -> None:
        self.store.commit(self.take())
        self.store.refresh()
        self.engine.settle()

    def collect(self) -> int:
        """Remove garbage once; how many names there were."""
        garbage = self.engine.garbage()
        self.store.commit(garbage)
        self.store.refresh()
        return len(garbage)

    def crash(self) -> Disk:
        return Disk(self.store.after_crash(), len(self.partitions))

    @property
    def entries(self) -> Any:
        return self.partitions[0].entries

    def shown(self, key: bytes) -> bytes | None:
        return self.partitions[0].shown(key)


def test_what_is_amended_before_it_is_committed() -> None:
    """An entry that waits for its commit, or is under way, is replaced where it waits."""
    disk = Disk()
    disk.entries[b"a"] = b"1"
    disk.partitions[0].amend(b"a", b"2")
    assert (disk.entries.get(b"a"), disk.shown(b"a")) == (b"2", None)
    changes = disk.take()
    disk.partitions[0].amend(b"a", b"3")
    disk.store.commit(changes)
    disk.store.refresh()
    disk.engine.settle()
    assert (disk.entries.get(b"a"), disk.shown(b"a")) == (b"3", b"2")
    disk.commit()
    assert disk.shown(b"a") == b"3"


def test_what_is_staged_is_found_and_not_shown() -> None:
    """Until it is committed, also while that is under way; a crash takes it away."""
    disk = Disk()
    disk.entries[b"a"] = b"1"
    assert (disk.entries.get(b"a"), disk.shown(b"a")) == (b"1", None)
    changes = disk.take()
    assert (disk.entries.get(b"a"), disk.shown(b"a")) == (b"1", None)
    disk.entries[b"a"] = b"2"
    disk.store.commit(changes)
    assert disk.shown(b"a") is None
    disk.store.refresh()
    disk.engine.settle()
    assert (disk.entries.get(b"a"), disk.shown(b"a")) == (b"2", b"1")
    after = disk.crash()
    assert (after.entries.get(b"a"), after.shown(b"a")) == (b"1", b"1")


def test_a_delete_is_staged_too() -> None:
    disk = Disk()
    disk.entries[b"a"] = b"1"
    disk.commit()
    del disk.entries[b"a"]
    assert (disk.entries.get(b"a"), disk.shown(b"a")) == (None, b"1")
    assert list(disk.entries) == []
    disk.commit()
    assert disk.shown(b"a") is None
    assert disk.crash().entries.get(b"a") is None


def test_answers_depend_on_the_batch_that_holds_them() -> None:
    """On the one that is gathered, or else on the one that is being committed, or on none."""
    disk = Disk()
    disk.engine.depend()
    assert disk.depends == []
    disk.entries[b"a"] = b"1"
    disk.engine.depend()
    changes = disk.take()
    disk.engine.depend()
    assert disk.depends == [1, 1]
    disk.entries[b"b"] = b"1"
    disk.engine.depend()
    assert disk.depends.pop() == 2
    disk.store.commit(changes)
    disk.engine.settle()
    assert disk.engine.committed == 1
    disk.commit()
    disk.engine.depend()
    assert (disk.depends, disk.engine.committed) == ([1, 1], 2)


def test_a_batch_that_cannot_be_committed_is_part_of_the_next_one() -> None:
    """What was staged meanwhile is newer."""
    disk = Disk()
    disk.entries[b"a"] = b"1"
    disk.entries[b"b"] = b"1"
    disk.take()
    disk.entries[b"a"] = b"2"
    disk.engine.put_back()
    assert disk.engine.has_staged
    assert disk.engine.committed == 0
    disk.commit()
    assert (disk.shown(b"a"), disk.shown(b"b"), disk.engine.committed) == (b"2", b"1", 2)


def test_what_is_remembered() -> None:
    """The fields of a partition are those of the moment at which its batch was taken."""
    disk = Disk()
    disk.remembered[0] = Remembered(5, b"f" * 16, 1, 0, 2)
    disk.entries[b"a"] = b"1"
    disk.commit()
    disk.remembered[1] = Remembered(6, b"", 0, 0, 0)
    disk.partitions[1].changed()
    assert disk.engine.has_staged
    disk.commit()
    assert not disk.engine.has_staged
    disk.remembered[0] = Remembered(7, b"", 9, 9, 9)
    after = disk.crash()
    assert [p.remembered for p in after.partitions] == [
        Remembered(5, b"f" * 16, 1, 0, 2),
        Remembered(6, b"", 0, 0, 0),
        None,
    ]
    assert remembered_joins(after.store) == ((Join(0, 5), Join(1, 6)), ())


def test_what_may_be_missing() -> None:
    """N2a: of what this node was an owner of. Where it was none it would stay doubtful for ever."""
    disk = Disk()
    for number, join_epoch in enumerate((5, 0)):
        disk.remembered[number] = Remembered(join_epoch, b"", 0, 0, 0)
        disk.partitions[number].changed()
    disk.commit()
    after = disk.crash()
    after.store.commit(doubted(after.store))
    after.store.refresh()
    assert [p.remembered and p.remembered.is_doubtful for p in after.crash().partitions] == [
        True,
        False,
        None,
    ]
    assert remembered_joins(after.store) == ((), (Join(0, 5),))


def test_discarding_is_one_step() -> None:
    """Nothing is found any more, also of what is staged; a crash before the commit undoes it, and
    what is left on the disk is removed later."""
    disk = Disk()
    disk.entries[b"a"] = b"1"
    disk.partitions[1].entries[b"a"] = b"other"
    disk.commit()
    disk.entries[b"b"] = b"1"
    disk.entries.clear()
    disk.entries[b"c"] = b"2"
    assert list(disk.entries) == [b"c"]
    assert [disk.entries.get(key) for key in (b"a", b"b", b"c")] == [None, None, b"2"]
    assert disk.crash().entries.get(b"a") == b"1"
    disk.commit()
    after = disk.crash()
    for each in (disk, after):
        assert [each.entries.get(key) for key in (b"a", b"b", b"c")] == [None, None, b"2"]
        assert len(each.store.synced) == 6  # two states, four entries
        each.partitions[0].former.let_go()
        assert [each.collect(), each.collect(), each.collect()] == [2, 0, 0]
        assert each.partitions[1].entries.get(b"a") == b"other"
    again = after.crash()
    assert list(again.entries) == [b"c"]
    assert len(again.store.synced) == 4


def test_garbage_is_removed_in_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gtstore.disk._GARBAGE_AT_ONCE", 10)
    disk = Disk()
    for i in range(25):
        disk.entries[b"%d" % i] = b"1"
    disk.commit()
    disk.entries.clear()
    disk.partitions[0].former.let_go()
    disk.commit()
    assert [disk.collect() for _ in range(4)] == [10, 10, 5, 0]


def generations(disk: Disk) -> dict[int, int]:
    """How many names of each generation of partition 0 are on disk."""
    names = [name for name in disk.store.synced if name.startswith(bytes(4))]
    return Counter(int.from_bytes(name[4:8], "big") for name in names)


def discard(disk: Disk, *keys: bytes) -> None:
    """Discard what there is, and store these keys, with the generation as their value."""
    disk.entries.clear()
    for key in keys:
        disk.entries[key] = b"%d" % disk.entries.generation
    disk.commit()


def test_what_was_discarded_can_be_read_until_it_is_let_go() -> None:
    """Then it is garbage; and the next generation that is discarded can be read."""
    disk = Disk()
    former = disk.partitions[0].former
    assert (former.get(b"a"), former.from_key(b"", 9)) == (None, [])
    former.let_go()
    for key in (b"a", b"c", b"b"):
        disk.entries[key] = b"0"
    disk.partitions[1].entries[b"a"] = b"other"
    disk.commit()
    assert former.get(b"a") is None
    discard(disk, b"d")
    assert [former.get(key) for key in (b"a", b"b", b"d")] == [b"0", b"0", None]
    assert former.from_key(b"", 9) == [b"a", b"b", b"c"]
    assert (former.from_key(b"b", 1), former.from_key(b"b\0", 9)) == ([b"b"], [b"c"])
    assert disk.partitions[1].former.from_key(b"", 9) == []
    assert disk.collect() == 0
    former.let_go()
    assert (former.get(b"a"), former.from_key(b"", 9)) == (None, [])
    assert (disk.collect(), generations(disk)) == (3, {1: 1})
    discard(disk)
    assert former.get(b"d") == b"1"


def test_the_oldest_one_is_kept() -> None:
    """What comes after it until it is let go are copies of it that are not finished, or empty; they
    are garbage. An empty one is not worth keeping."""
    disk = Disk()
    former = disk.partitions[0].former
    discard(disk, b"z")
    assert former.from_key(b"", 9) == []
    discard(disk, b"a", b"b")
    assert former.from_key(b"", 9) == [b"z"]
    former.let_go()
    for keys in ((), (b"a",), (b"c",)):
        discard(disk, *keys)
    assert former.from_key(b"", 9) == [b"a", b"b"]
    assert generations(disk) == {1: 1, 2: 2, 4: 1, 5: 1}
    assert (disk.collect(), generations(disk)) == (2, {2: 2, 5: 1})
    assert disk.collect() == 0
    assert (former.get(b"a"), disk.entries.get(b"c")) == (b"2", b"5")
    after = disk.crash()
    assert after.partitions[0].former.from_key(b"", 9) == []
    assert (after.collect(), generations(after)) == (2, {5: 1})


def test_a_damaged_former_entry_is_as_if_it_were_not_there() -> None:
    disk = Disk()
    disk.entries[b"a"] = disk.entries[b"b"] = b"0"
    disk.commit()
    discard(disk)
    disk.store.damaged.add(bytes(8) + b"a")
    former = disk.partitions[0].former
    assert [former.get(key) for key in former.from_key(b"", 9)] == [None, b"0"]


def test_keys_come_in_byte_order() -> None:
    """Staged, taken and committed ones together, each once."""
    disk = Disk()
    for key in (b"d", b"b", b"f"):
        disk.entries[key] = b"1"
    disk.commit()
    assert list(disk.entries) == [b"b", b"d", b"f"]
    disk.entries[b"a"] = b"2"
    disk.entries[b"d"] = b"2"
    disk.take()
    disk.entries[b"e"] = b"3"
    disk.entries[b"d"] = b"3"
    del disk.entries[b"f"]
    disk.partitions[1].entries[b"c"] = b"4"
    assert list(disk.entries) == [b"a", b"b", b"d", b"e"]


@pytest.mark.parametrize("at", range(5))
def test_a_damaged_entry_is_not_read(at: int) -> None:
    """Each byte of it and of its checksum counts; and it belongs to its name."""
    name = b"\0" * 8 + b"key"
    ((_, stored),) = sealed({name: b"e"})
    assert stored is not None
    assert unsealed(name, stored) == b"e"
    wrong = bytes(byte ^ (i == at) for i, byte in enumerate(stored))
    with pytest.raises(StoreDamaged, match="key key, in partition 0, is damaged"):
        unsealed(name, wrong)
    with pytest.raises(StoreDamaged):
        unsealed(name[:-1] + b"z", stored)


@pytest.mark.parametrize("name", [b"P\0\0\0\1", b"A", b"L", b"M\0\0\0\1", b"W", b"\0\0\0\1"])
def test_a_damaged_record_is_not_read(name: bytes) -> None:
    """Whatever it is, all of it counts."""
    ((_, stored),) = sealed({name: b"state"})
    assert stored is not None
    assert unsealed(name, stored) == b"state"
    for bit in range(len(stored) * 8):
        wrong = bytes(
            byte ^ (1 << bit % 8 if at == bit // 8 else 0) for at, byte in enumerate(stored)
        )
        with pytest.raises(RecordDamaged):
            unsealed(name, wrong)
    for value in (b"", stored[:3], stored[:-1], stored + b"\0"):
        with pytest.raises(RecordDamaged):
            unsealed(name, value)


@pytest.mark.parametrize("is_missing", [False, True])
def test_a_partition_whose_record_is_damaged_begins_anew(is_missing: bool) -> None:
    """Its join is not remembered, and no entry of any generation that was there is found again, not
    even after a crash before anything else is committed. The others are as they were."""
    disk = Disk()
    for partition, join_epoch in ((0, 5), (1, 6)):
        disk.remembered[partition] = Remembered(join_epoch, b"", 1, 0, 2)
    for value in (b"old", b"new"):
        disk.entries.clear()
        disk.entries[b"a"] = value
        disk.partitions[1].entries[b"a"] = value
        disk.commit()
    disk.store.synced[b"\0\0\0\0\0\0\0\7" + b"z"] = b"of a generation that was never finished"
    name = b"P\0\0\0\0"
    if is_missing:
        del disk.store.synced[name]
    else:
        disk.store.damaged.add(name)
    for _ in range(2):
        after = disk.crash()
        assert after.partitions[0].remembered is None
        assert (list(after.entries), after.entries.get(b"a")) == ([], None)
        assert after.entries.generation == 8
        assert remembered_joins(after.store) == ((Join(1, 6),), ())
        assert after.partitions[1].entries.get(b"a") == b"new"
        assert after.partitions[2].entries.generation == 0
    after.remembered[0] = Remembered(9, b"", 0, 0, 0)
    after.store.damaged.clear()
    after.commit()
    after = after.crash()
    assert after.partitions[0].remembered == Remembered(9, b"", 0, 0, 0)
    assert (list(after.entries), after.entries.generation) == ([], 8)
    assert after.collect() == 3


def test_there_is_no_generation_left() -> None:
    """Such a name was never written: nothing of the store can be relied upon."""
    disk = Disk()
    disk.store.synced[b"\0\0\0\0\xff\xff\xff\xff" + b"z"] = b"entry"
    with pytest.raises(RecordDamaged):
        disk.crash()
    short = Disk(ForgetfulStore({b"\0\0\0\0\2": b"what is no entry"}))
    assert short.entries.generation == 0x0200_0001


steps = st.lists(
    st.one_of(
        st.tuples(st.just("set"), st.integers(0, 1), st.sampled_from([b"a", b"b", b"c"])),
        st.tuples(st.just("delete"), st.integers(0, 1), st.sampled_from([b"a", b"b", b"c"])),
        st.tuples(st.just("clear"), st.integers(0, 1), st.just(b"")),
        st.tuples(
            st.sampled_from(["take", "settle", "put back", "collect", "crash"]),
            st.just(0),
            st.just(b""),
        ),
    ),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(steps)
def test_it_is_as_if_there_were_two_dicts(script: list[tuple[str, int, bytes]]) -> None:
    """One of what is found, one of what is on disk; whatever comes between."""
    disk = Disk(partitions=2)
    found: list[dict[bytes, bytes]] = [{}, {}]
    stored: list[dict[bytes, bytes]] = [{}, {}]
    taken: Any = None
    then: list[dict[bytes, bytes]] = []
    for number, (what, at, key) in enumerate(script):
        entries = disk.partitions[at].entries
        match what:
            case "set":
                entries[key] = found[at][key] = b"%d" % number
            case "delete":
                if key in found[at]:
                    del entries[key], found[at][key]
            case "clear":
                entries.clear()
                found[at].clear()
            case "take":
                if taken is None:
                    taken, then = disk.take(), [dict(each) for each in found]
            case "settle":
                if taken is not None:
                    disk.store.commit(taken)
                    disk.store.refresh()
                    disk.engine.settle()
                    taken, stored = None, then
            case "put back":
                if taken is not None:
                    disk.engine.put_back()
                    taken = None
            case "collect":
                disk.collect()
            case "crash":
                disk, taken = disk.crash(), None
                found = [dict(each) for each in stored]
        for partition, expected, on_disk in zip(disk.partitions, found, stored, strict=True):
            assert {k: partition.entries.get(k) for k in partition.entries} == expected
            for k in (b"a", b"b", b"c"):
                assert partition.entries.get(k) == expected.get(k)
                # What was discarded is shown no more, though a crash would bring it back.
                is_shown = not any(what == "clear" for what, _, _ in script)
                assert partition.shown(k) in (
                    (on_disk.get(k),) if is_shown else (on_disk.get(k), None)
                )


def test_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    """M6a: the newest ones stay, the last one last; none where they are damaged."""
    store = ForgetfulStore()
    marks = [bytes((number,)) * 16 for number in range(MARKS_MAX + 2)]
    assert marks_on(store) == b""
    for mark in marks:
        store.commit(marked(store, mark))
        store.refresh()
    assert marks_on(store) == b"".join(marks[2:])

    def fail(name: bytes) -> bytes:
        raise RecordDamaged(name)

    monkeypatch.setattr(store, "get", fail)
    assert marks_on(store) == b""
