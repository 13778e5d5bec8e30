"""One example of each message: a cluster of 3 nodes with 2 replicas, and the key "key1".

docs/PROTOCOL.md prints them, tests/vectors/ has them, and tests decode them.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Final

from .. import messages
from ..codec import encode_record

_CLUSTER_ID: Final = 0x5EED_0001 << 32
_EPOCH: Final = _CLUSTER_ID | 1
_NEXT_EPOCH: Final = _CLUSTER_ID | 2
_TIME: Final = 1_700_000_000_000_000
_PUT_CLIENT: Final = 0x1122334455667788
_TOKEN: Final = bytes(range(0xA0, 0xB0))
_MARK: Final = bytes(range(0x60, 0x70))
_KEY: Final = b"key1"
_PARTITION: Final = 186
_ROW: Final = messages.Row(
    _PARTITION,
    _EPOCH,
    _EPOCH,
    (messages.Owner(1, 1, _EPOCH, 1), messages.Owner(2, 1, _EPOCH, 1)),
)
_NEXT_ROW: Final = messages.Row(
    _PARTITION, _NEXT_EPOCH, _NEXT_EPOCH, (messages.Owner(2, 1, _EPOCH, 1),)
)
_JOINED_ROW: Final = messages.Row(
    _PARTITION,
    _NEXT_EPOCH,
    _NEXT_EPOCH,
    (messages.Owner(2, 1, _EPOCH, 1), messages.Owner(3, 1, _NEXT_EPOCH, 0)),
)
_MEMBERS: Final = tuple(
    messages.Member(node, messages.ALIVE, 1, 4000 + node, 10000 + node, "127.0.0.1")
    for node in (1, 2, 3)
)
_ENTRY: Final = messages.Entry(_TIME, _PUT_CLIENT, 7, 0, None, b"value1")
_COMMITTED: Final = messages.Entry(_TIME, _PUT_CLIENT, 7, messages.COMMITTED, None, b"value1")
_APPENDED: Final = messages.Entry(_TIME + 1, _PUT_CLIENT, 8, 0, None, b"+")
_RESULT: Final = messages.Entry(_TIME + 1, _PUT_CLIENT, 8, messages.ORDERED, None, b"value1+")
_VERSION: Final = encode_record(_ENTRY)[:16]
_HELD: Final = messages.HeldEntry(_KEY, _VERSION, zlib.crc32(encode_record(_ENTRY)))

EXAMPLES: Final[Mapping[int, tuple[int, messages.Message]]] = {
    message.kind: (request_id, message)
    for request_id, message in (
        (1, messages.Ping()),
        (1, messages.Pong(messages.ROLE_NODE, 1, 1, 4001, _EPOCH, _TIME, 1, 31, 0)),
        (2, messages.ClusterInfo()),
        (2, messages.Cluster(_EPOCH, 3, 2, messages.HASH_ADDITIVE, 192, _TIME, _MEMBERS)),
        (3, messages.GetMap(_EPOCH)),
        (3, messages.Map(_NEXT_EPOCH, (_NEXT_ROW,))),
        (4, messages.KeyNodes(_KEY)),
        (5, messages.NextPrimary(1, _KEY)),
        (4, messages.Owners(_ROW, _MEMBERS[:2])),
        (
            1,
            messages.Register(
                _TOKEN, 1, 1, 4001, 10001, (messages.Join(_PARTITION, _EPOCH),), (), _MARK
            ),
        ),
        (1, messages.Registered(_CLUSTER_ID, 3, 2, messages.HASH_ADDITIVE)),
        (1, messages.InSync(_TOKEN, 3, (messages.Join(_PARTITION, _NEXT_EPOCH),))),
        (1, messages.Noted()),
        (2, messages.Leave(_TOKEN, 1, messages.Join(_PARTITION, _EPOCH))),
        (3, messages.NewMark(_TOKEN, 1, 2, _MARK)),
        (1, messages.GetStatistics()),
        (1, messages.Statistics(1, 20, 12, 3)),
        (7, messages.GetTroubles()),
        (7, messages.Troubles((messages.Trouble("unsaved", _TIME, "no space left on device"),))),
        (6, messages.Get(_EPOCH, _PARTITION, _KEY)),
        (6, messages.EntryReply(encode_record(_COMMITTED))),
        (6, messages.NotFound()),
        (7, messages.Write(_EPOCH, _PARTITION, _KEY, encode_record(_ENTRY))),
        (7, messages.Ack()),
        (7, messages.Superseded(_VERSION)),
        (0, messages.Commit(_PARTITION, _VERSION, _KEY)),
        (
            8,
            messages.Execute(
                _EPOCH, _PARTITION, _KEY, messages.APPEND, b"", encode_record(_APPENDED)
            ),
        ),
        (8, messages.Executed(encode_record(_RESULT))),
        (8, messages.Failed(messages.RESULT_TOO_LONG, encode_record(_COMMITTED))),
        (9, messages.Scan(_EPOCH, _PARTITION, b"", b"key", 1)),
        (
            9,
            messages.Scanned(
                1,
                b"kye1",
                (
                    messages.ScannedKey(_KEY, encode_record(_COMMITTED)),
                    messages.ScannedKey(b"kye1", b""),
                ),
            ),
        ),
        (1, messages.MapUpdate(_TOKEN, _NEXT_EPOCH, (_NEXT_ROW,))),
        (1, messages.Adopted(_NEXT_EPOCH)),
        (2, messages.Copy(_TOKEN, 3, _JOINED_ROW, b"", (_HELD,))),
        (
            2,
            messages.Copied(
                _NEXT_EPOCH,
                1,
                bytes(16),
                (
                    messages.KeyedEntry(_KEY, bytes((messages.COMMITTED,))),
                    messages.KeyedEntry(b"kye1", encode_record(_COMMITTED)),
                ),
            ),
        ),
        (4, messages.Differs(_TOKEN, _PARTITION, _VERSION, _KEY)),
        (
            6,
            messages.Error(
                messages.STALE_EPOCH,
                "the owners are another list",
                encode_record(messages.StaleDetail(_NEXT_ROW)),
            ),
        ),
    )
}
"""kind -> request id and message. The document prints them, and tests decode them."""
