"""Cuts a stream of bytes into frames (PROTOCOL.md section 3).

A FrameBuffer is fed with whatever arrives and returns the frames that are whole. It believes no
length: a header is checked as soon as its bytes are there, and memory grows only with bytes that
have really arrived. It does not look into bodies.
"""

from __future__ import annotations

from ..errors import RemoteProtocolError
from . import messages
from .codec import BODY_SIZE_MAX, HEADER, MAGIC_VERSION, Frame

RECEIVE_SIZE = 64 * messages.KIB
_LARGE_RECEIVE_SIZE = messages.MIB


class FrameBuffer:
    """One direction of one connection.

    ``error`` is None, or what was wrong with the first bytes that are no frame. From then on the
    buffer takes nothing more, because nobody knows where the next frame would begin. The frames
    before are returned as ever, so that their requests can be answered first.
    """

    __slots__ = ("_chunks", "_size", "_wanted", "error")

    def __init__(self) -> None:
        self.error: RemoteProtocolError | None = None
        self._chunks: list[bytes] = []  # the beginning of a frame that is not whole yet
        self._size = 0  # its bytes
        self._wanted = 0  # how many bytes are needed before looking again makes sense

    @property
    def is_empty(self) -> bool:
        """Whether no frame has been begun."""
        return not self._size

    @property
    def receive_size(self) -> int:
        """How many bytes to ask the socket for: more while a long frame is under way."""
        missing = self._wanted - self._size
        return RECEIVE_SIZE if missing <= RECEIVE_SIZE else min(missing, _LARGE_RECEIVE_SIZE)

    def feed(self, data: bytes) -> list[Frame]:
        """Take bytes in and return the frames that they complete, in order."""
        if self._size:
            self._chunks.append(data)
            self._size += len(data)
            if self._size < self._wanted:
                return []
            data = b"".join(self._chunks)
            self._chunks.clear()
            self._size = 0
        if self.error is not None:
            return []
        frames: list[Frame] = []
        at = 0
        size = len(data)
        wanted = messages.HEADER_SIZE
        while size - at >= messages.HEADER_SIZE:
            magic_version, kind, flags, request_id, length = HEADER.unpack_from(data, at)
            if magic_version != MAGIC_VERSION or length > BODY_SIZE_MAX:
                self.error = _header_error(magic_version, length)
                return frames
            body_at = at + messages.HEADER_SIZE
            end = body_at + length
            if end > size:
                wanted = messages.HEADER_SIZE + length
                break
            frames.append((kind, flags, request_id, data[body_at:end]))
            at = end
        if at < size:
            self._keep(data[at:], wanted)
        return frames

    def _keep(self, rest: bytes, wanted: int) -> None:
        # Garbage that is shorter than a header is refused now: its sender may wait for an answer.
        prefix = MAGIC_VERSION.to_bytes(2, "big")
        if rest[:2] != prefix[: len(rest)]:
            self.error = _header_error(int.from_bytes(rest[:2].ljust(2, b"\1"), "big"), 0)
            return
        self._chunks.append(rest)
        self._size = len(rest)
        self._wanted = wanted


def _header_error(magic_version: int, length: int) -> RemoteProtocolError:
    magic, version = divmod(magic_version, 256)
    if magic != messages.MAGIC:
        return RemoteProtocolError(
            messages.BAD_MAGIC,
            f"this is no frame of GT Store: it begins with 0x{magic:02x}, not 0x{messages.MAGIC:02x}",
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
