"""Cuts a stream of bytes into frames (PROTOCOL.md section 3).

A FrameBuffer is fed with whatever arrives and returns the frames that are whole. It believes no
length: a header is checked as soon as its bytes are there, and memory grows only with bytes that
have really arrived. It does not look into bodies.
"""

from __future__ import annotations

from typing import Final

from ..errors import RemoteProtocolError
from . import messages
from .codec import BODY_SIZE_MAX, HEADER, MAGIC_VERSION, Frame

HEADER_SIZE: Final = messages.HEADER_SIZE
unpack_header: Final = HEADER.unpack_from

RECEIVE_SIZE: Final = 64 * messages.KIB
SHORT_RECEIVE_SIZE: Final = 448
"""What to ask for when only short frames are expected. Python's own allocator has bytes objects up
to that length, which is quicker than a large block of malloc's that is cut down afterwards."""
_LARGE_RECEIVE_SIZE: Final = messages.MIB


class FrameBuffer:
    """One direction of one connection.

    ``error`` is None, or what was wrong with the first bytes that are no frame. From then on the
    buffer takes nothing more, because nobody knows where the next frame would begin. The frames
    before are returned as ever, so that their requests can be answered first.
    """

    __slots__ = ("_begun", "_wanted", "error", "receive_size", "size")

    def __init__(self) -> None:
        self.error: RemoteProtocolError | None = None
        self.size = 0
        """Bytes of a frame that has been begun and is not whole."""
        self.receive_size = RECEIVE_SIZE
        """How many bytes to ask the socket for: more while a long frame is under way."""
        # The begun frame. No list of what arrived: a byte on its own would take forty there.
        self._begun = bytearray()
        self._wanted = 0  # how many bytes are needed before looking again makes sense

    @property
    def is_long(self) -> bool:
        """Whether the begun frame is one of those that only a few connections may receive at
        once."""
        return self.size > 0 and self._wanted > messages.LONG_FRAME_SIZE

    def feed(self, data: bytes) -> list[Frame]:
        """Take bytes in and return the frames that they complete, in order."""
        if self.size:
            data = self._join(data)
        frames: list[Frame] = []
        at = 0
        size = len(data)
        while size - at >= HEADER_SIZE:
            magic_version, kind, flags, request_id, length = unpack_header(data, at)
            end = at + HEADER_SIZE + length
            if end > size or magic_version != MAGIC_VERSION or length > BODY_SIZE_MAX:
                break
            frames.append((kind, flags, request_id, data[at + HEADER_SIZE : end]))
            at = end
        if at < size:
            self._keep(data[at:] if at else data)
        return frames

    def _join(self, data: bytes) -> bytes:
        """Return the begun frame's bytes with the new ones; or nothing, if they are still too
        few."""
        if self.error is not None:
            return b""
        self._begun += data
        self.size += len(data)
        if self.size < self._wanted:
            self._expect(self._wanted)
            return b""
        data = bytes(self._begun)
        self._begun.clear()
        self.size = 0
        self.receive_size = RECEIVE_SIZE
        return data

    def _keep(self, rest: bytes) -> None:
        """Keep the beginning of a frame, if it is one."""
        wanted = HEADER_SIZE
        if len(rest) >= HEADER_SIZE:
            magic_version, _, _, _, length = unpack_header(rest)
            wanted += length
        else:
            # Garbage that is shorter than a header is refused now: its sender may wait for an
            # answer.
            expected = MAGIC_VERSION.to_bytes(2, "big")
            magic_version = int.from_bytes(rest[:2] + expected[len(rest) :], "big")
            length = 0
            wanted = HEADER_SIZE if len(rest) > 1 else 2
        self.size = len(rest)
        if magic_version != MAGIC_VERSION or length > BODY_SIZE_MAX:
            self.error = _header_error(magic_version, length)
        else:
            self._begun += rest
            self._expect(wanted)

    def _expect(self, wanted: int) -> None:
        self._wanted = wanted
        self.receive_size = min(max(wanted - self.size, RECEIVE_SIZE), _LARGE_RECEIVE_SIZE)


def _header_error(magic_version: int, length: int) -> RemoteProtocolError:
    magic, version = divmod(magic_version, 256)
    if magic != messages.MAGIC:
        return RemoteProtocolError(
            messages.BAD_MAGIC,
            f"this is no frame: it begins with 0x{magic:02x}, not 0x{messages.MAGIC:02x}",
            closes=True,
        )
    if version != messages.PROTOCOL_VERSION:
        return RemoteProtocolError(
            messages.UNSUPPORTED_VERSION,
            f"protocol version {version} is not spoken here, only {messages.PROTOCOL_VERSION}",
            closes=True,
            detail=messages.VersionDetail(messages.PROTOCOL_VERSION),
        )
    return RemoteProtocolError(
        messages.FRAME_TOO_LONG,
        f"a body of {length} bytes; {BODY_SIZE_MAX} are allowed",
        closes=True,
        detail=messages.SizeDetail(BODY_SIZE_MAX),
    )
