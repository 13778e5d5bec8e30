"""The message table: what must be true of every row, so that a new one cannot break it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from gtstore.engine import MemoryEngine
from gtstore.replica import Replicas
from gtstore.wire import messages
from gtstore.wire.fields import Array, IfFlag, Record, Rest, fields_of
from gtstore.wire.messages import (
    CLIENT,
    ERRORS,
    HASH_ADDITIVE,
    MANAGER,
    MESSAGES,
    NODE,
    ErrorCode,
    Message,
)

RECORDS: list[type[Any]] = [
    cls
    for cls in vars(messages).values()
    if dataclasses.is_dataclass(cls) and isinstance(cls, type) and fields_of(cls)
    if not issubclass(cls, Message)
]
REQUESTS = [cls for cls in MESSAGES.values() if cls.kind < 0x80]
REPLIES = [cls for cls in MESSAGES.values() if cls.kind >= 0x80]
BY_NAME = {cls.name: cls for cls in MESSAGES.values()}

each_message = pytest.mark.parametrize("cls", MESSAGES.values(), ids=lambda cls: cls.name)
each_request = pytest.mark.parametrize("cls", REQUESTS, ids=lambda cls: cls.name)
each_body = pytest.mark.parametrize(
    "cls", [*MESSAGES.values(), *RECORDS], ids=lambda cls: cls.__name__
)
each_error = pytest.mark.parametrize("row", ERRORS.values(), ids=lambda row: row.name)


def ends_open(cls: type[Any]) -> bool:
    """Whether the record reaches to the end of the body."""
    return any(
        isinstance(field.wire_type, Rest)
        or (isinstance(field.wire_type, Record) and ends_open(field.wire_type.cls))
        for field in fields_of(cls)
    )


def test_kinds_are_one_byte_and_zero_is_reserved() -> None:
    """A kind is a byte from 1 on; the mapping itself sees to it that no two are equal."""
    assert all(0 < kind < 0x100 and cls.kind == kind for kind, cls in MESSAGES.items())
    assert len(MESSAGES) == len(set(MESSAGES.values()))


def test_names_are_unique() -> None:
    """Messages and error codes share the names that ``replies`` uses, so none is used twice."""
    names = [cls.name for cls in MESSAGES.values()] + [row.name for row in ERRORS.values()]
    assert len(names) == len(set(names))


def test_every_message_class_is_in_the_table() -> None:
    """A class without a kind could never be sent."""
    assert set(Message.__subclasses__()) == set(MESSAGES.values())


def test_a_kind_is_used_once() -> None:
    """A second message of the same kind, or one of kind zero, does not even load."""
    for kind in (0, messages.Ping.kind, 0x100):
        with pytest.raises(AssertionError):
            messages.message(kind, CLIENT, NODE)(type("Again", (), {}))


@each_request
def test_requests_are_below_0x80_and_name_their_replies(cls: type[Message]) -> None:
    """Each reply that a request lists is a message from 0x80 on, or an error code."""
    codes = {row.name for row in ERRORS.values()}
    for name in cls.replies:
        assert name in codes or BY_NAME[name].kind >= 0x80, name


@each_request
def test_a_reply_goes_back_to_who_asked(cls: type[Message]) -> None:
    """A reply's receivers and senders are the request's sender and receivers."""
    for name in cls.replies:
        if name in BY_NAME:
            assert cls.sender in BY_NAME[name].receivers
            assert all(receiver in BY_NAME[name].sender for receiver in cls.receivers)


def test_every_reply_answers_some_request() -> None:
    """Apart from ERROR, which answers them all, no reply stands there for nothing."""
    listed = {name for cls in REQUESTS for name in cls.replies}
    assert {cls.name for cls in REPLIES} - {"ERROR"} <= listed
    assert all(cls.replies == () for cls in REPLIES)


@each_message
def test_senders_and_receivers_are_roles(cls: type[Message]) -> None:
    """Every message goes from a client, manager or node to others of these."""
    assert set(cls.sender.split(" or ")) <= {CLIENT, MANAGER, NODE}
    assert cls.receivers
    assert set(cls.receivers) <= {CLIENT, MANAGER, NODE}


@each_message
def test_every_message_says_what_it_is_for(cls: type[Message]) -> None:
    """The document is made from the docstrings; the one that dataclass makes up does not count."""
    assert cls.__doc__
    assert not cls.__doc__.startswith(f"{cls.__name__}(")


@each_body
def test_every_field_says_what_it_means(cls: type[Any]) -> None:
    """Each field of the class has a wire type and a sentence, in the same order."""
    names = [field.name for field in dataclasses.fields(cls)]
    assert [field.name for field in fields_of(cls)] == names
    assert all(field.meaning.strip() for field in fields_of(cls))


@each_message
def test_no_field_hides_what_the_table_says_of_the_message(cls: type[Message]) -> None:
    """A field called ``kind`` or ``name`` would replace the message's own."""
    assert not {field.name for field in fields_of(cls)} & set(Message.__annotations__)


@each_body
def test_only_the_last_field_reaches_to_the_end(cls: type[Any]) -> None:
    """Nothing could stand behind a field without a length."""
    for at, field in enumerate(fields_of(cls), 1):
        match field.wire_type:
            case Rest():
                assert at == len(fields_of(cls))
            case Record(cls=inner):
                assert at == len(fields_of(cls)) or not ends_open(inner)
            case Array(item=item):
                assert not ends_open(item.cls)


@each_body
def test_flags_stand_before_the_field_that_depends_on_them(cls: type[Any]) -> None:
    """Whoever reads the bytes in order must know the flags by then."""
    names = [field.name for field in fields_of(cls)]
    for at, field in enumerate(fields_of(cls)):
        if isinstance(field.wire_type, IfFlag):
            assert "flags" in names[:at]
            assert field.wire_type.bit in messages.ENTRY_FLAGS


def test_error_numbers() -> None:
    """A row stands under its own number, which fits its field and is not zero."""
    assert all(0 < code < 0x10000 and row.code == code for code, row in ERRORS.items())


@each_error
def test_error_rows(row: ErrorCode) -> None:
    """Its constant has its number; it says what it means and what became of the operation."""
    assert getattr(messages, row.name) == row.code
    assert row.outcome in ("no", "maybe")
    assert row.retry
    assert row.meaning
    assert row.detail is None or row.detail in RECORDS


@pytest.mark.parametrize(
    "names", [messages.HASHES, messages.STATES, messages.ROLES], ids=["hash", "state", "role"]
)
def test_field_values_are_numbered_from_one(names: dict[int, str]) -> None:
    """Zero is reserved in enumerations too, and no name stands for two numbers."""
    assert 0 not in names
    assert len(set(names.values())) == len(names)


def test_entry_flags_are_single_bits_of_a_byte() -> None:
    """Flags can be set together."""
    assert all(0 < bit < 0x100 and bit.bit_count() == 1 for bit in messages.ENTRY_FLAGS)


@pytest.mark.parametrize("limit", messages.LIMITS, ids=lambda limit: limit.name)
def test_limits_have_a_value(limit: messages.Limit) -> None:
    """The document's table of limits has no empty rows."""
    assert limit.name
    assert limit.value


def test_limits_fit_their_fields() -> None:
    """A key's length fits a u16, and a frame holds the longest key with the longest entry."""
    overhead = messages.HEADER_SIZE + 14  # epoch, partition and the key's length
    assert messages.KEY_SIZE_MAX < 0x10000
    assert overhead + messages.KEY_SIZE_MAX + messages.ENTRY_SIZE_MAX <= messages.FRAME_SIZE_MAX
    assert messages.PROBE_MISSES_MAX > 0


def test_a_node_handles_every_data_request_of_the_table() -> None:
    """A client's requests to nodes, except PING and GET_STATISTICS, are exactly what replica.py and
    scanning.py handle."""
    replicas = Replicas(1, 1, 1, 1, HASH_ADDITIVE, MemoryEngine(), lambda: 0)
    data = {cls.kind for cls in REQUESTS if cls.sender == CLIENT and NODE in cls.receivers}
    assert set(replicas.handlers) == data - {
        messages.Ping.kind,
        messages.Scan.kind,
        messages.GetStatistics.kind,
    }
    assert set(replicas.handlers) == {
        messages.Get.kind,
        messages.Write.kind,
        messages.Commit.kind,
        messages.Execute.kind,
    }
