"""Ctrl-C in the middle of a benchmark that has processes running and keys in a cluster."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class Stopping:
    """SIGINT, SIGTERM and SIGHUP are noted meanwhile, and count where ``check`` is called.

    So none of them comes in between the start of a process and the note that it has to be ended, or
    in the middle of an end.
    """

    def __init__(self) -> None:
        self.signals = 0
        """How many have come."""
        self._number = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stopping:
        if threading.current_thread() is threading.main_thread():  # no other one may
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                # nohup ignores SIGHUP, and a shell's background job SIGINT: they know why.
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if kind is None:
            self.check()

    def check(self, known: int = 0) -> None:
        """Raise KeyboardInterrupt if SIGINT came, or SystemExit as the shell names the signal, if
        more than ``known`` signals have come."""
        if self.signals > known:
            if self._number == signal.SIGINT:
                raise KeyboardInterrupt
            raise SystemExit(128 + self._number)

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self.signals += 1
        self._number = self._number or number
