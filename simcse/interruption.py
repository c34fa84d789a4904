"""Ctrl-C and SIGTERM: a checkpoint at the end of the step, then an end."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any, NoReturn

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from simcse import distributed
from simcse.errors import Terminated


class StopSignals(TrainerCallback):
    """While entered, SIGTERM raises :class:`~simcse.errors.Terminated`; in training both wait.

    A signal that comes while training lets the step end and its checkpoint be written; the second
    one stops at once. (The Trainer's own answer to SIGTERM, ``enable_jit_checkpoint``, knows
    nothing of Ctrl-C, saves between gradient and weights, and lets the run end as if finished.)
    Of several processes all stop where one was told to.
    """

    def __init__(self) -> None:
        self.training = False
        self.received: int | None = None
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

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """From now on signals wait for the end of the step."""
        self.training = True

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Ask for a checkpoint; without a line in the log, which must not know of the signal."""
        if self._agreed(args) is not None:
            control.should_save = True

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """The checkpoint is written."""
        if (number := self._agreed(args)) is not None:
            self._stop(
                number,
                f"interrupted after step {state.global_step:,}, with a checkpoint; the same "
                "command resumes",
            )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Signals act at once again."""
        self.training = False
        if (number := self._agreed(args)) is not None:  # it came after the last checkpoint
            self._stop(number)

    def _agreed(self, args: TrainingArguments) -> int | None:
        """The signal that any of the processes has received."""
        return distributed.highest(self.received or 0, args.device) or None

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if not self.training or self.received is not None:
            self._stop(number)
        self.received = number
        if not distributed.is_first():
            return
        # Not print: a signal may come in the middle of another print to the same stream.
        note = "\nstopping after this step, with a checkpoint; once more stops at once\n"
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, note.encode())

    def _stop(self, number: int, *message: str) -> NoReturn:
        self.training = False
        self.__exit__()  # one end is enough: what comes while this one unwinds ends the process
        raise Terminated(*message) if number == signal.SIGTERM else KeyboardInterrupt(*message)
