"""Ctrl-C and SIGTERM: a checkpoint at the end of the step, then an end."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from simcse import distributed
from simcse.errors import Terminated


class StopSignals:
    """While entered, SIGTERM raises :class:`~simcse.errors.Terminated` and Ctrl-C as usual.

    Inside :meth:`waiting` the first signal is kept for the loop, which asks for :attr:`received`
    after each step; a second one acts at once.
    """

    def __init__(self) -> None:
        self.received = 0
        """Number of the signal that waits; 0 where none does."""
        self._waits = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # others cannot set handlers
            for number in (signal.SIGINT, signal.SIGTERM):
                before = signal.getsignal(number)
                # Ignored (as nohup and shells do in the background) or not Python's: left alone.
                if before not in (None, signal.SIG_IGN):
                    self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before.clear()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Signals wait; one that the loop has not asked for acts at the end of the block."""
        self._waits = True
        try:
            yield
        finally:
            self._waits = False
        if self.received:
            self.stop(self.received)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if not self._waits or self.received:
            self.stop(number)
        self.received = number
        if not distributed.is_first():
            return
        # Not print: a signal may come in the middle of another print to the same stream.
        note = "\nstopping after this step, with a checkpoint; once more stops at once\n"
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, note.encode())

    def stop(self, number: int, *message: str) -> NoReturn:
        """Raise what stands for a signal."""
        self.__exit__()  # one end is enough: what comes while this one unwinds ends the process
        raise Terminated(*message) if number == signal.SIGTERM else KeyboardInterrupt(*message)
