"""What a run reports while it trains: ``log.jsonl``, a progress bar, lines, trackers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from tqdm import tqdm

from simcse import distributed
from simcse.config.settings import Config
from simcse.evaluation.geometry import collapse
from simcse.files import write_atomically
from simcse.reports.runs import LOG_FILE

Entry = dict[str, Any]


class Progress:
    """Reports every logged value once; only the main process does.

    Args:
        run: Run folder.
        accelerator: Has the trackers.
        steps: Of the whole run.
        done: Of these, before it was resumed.
        entries: Of the log so far; whatever ``log.jsonl`` holds beyond them is dropped.
    """

    def __init__(
        self, run: Path, accelerator: Accelerator, steps: int, done: int, entries: list[Entry]
    ) -> None:
        self.path = run / LOG_FILE
        self.accelerator = accelerator
        self.entries = entries
        self.warned: list[str] = []
        hidden = None if distributed.is_first() else True  # None: on a terminal only
        self.bar = tqdm(total=steps, initial=done, unit="step", disable=hidden)
        if distributed.is_first():
            write_atomically(self.path, "".join(map(_line, entries)))

    def step(self, number: int) -> None:
        """Move the bar to a step that is done."""
        self.bar.update(number - self.bar.n)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Write values of a step to the log and the trackers."""
        entry = {"step": step, **values}
        self.entries.append(entry)
        if distributed.is_first():
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_line(entry))
            self.accelerator.log(values, step=step)

    def loss(self, step: int, values: dict[str, float]) -> None:
        """Log a loss, and show it beside the bar."""
        self.log(step, values)
        self.bar.set_postfix(loss=f"{values['loss']:.4f}", refresh=False)

    def warn(self, step: int, warnings: list[str]) -> None:
        """Say what is going wrong, once while it does."""
        for warning in warnings:
            if warning not in self.warned:
                self._write(f"warning: step {step:,}: {warning}")
        self.warned = warnings

    def dev(self, step: int, values: dict[str, float]) -> None:
        """Log a dev score with the geometry, and print both."""
        self.log(step, {f"eval_{key}": value for key, value in values.items()})
        self._write(
            f"step {step:>6,}  dev score {100 * values['dev_score']:.2f}, "
            f"alignment {values['alignment']:.3f}, uniformity {values['uniformity']:.3f}"
        )
        cosine, rank = values["mean_cosine"], values["effective_rank"]
        if (kind := collapse(cosine, rank)) != "none":
            self._write(
                f"warning: {kind} collapse at step {step:,}: mean cosine of distinct sentences "
                f"{cosine:.4f}, effective rank {rank:.1f} (docs/protocol.md)"
            )

    def close(self) -> None:
        """Leave the bar as it is, finish the trackers, and the log, whatever became of it."""
        self.bar.close()
        if distributed.is_first():
            write_atomically(self.path, "".join(map(_line, self.entries)))
        for tracker in self.accelerator.trackers:  # its end_training also ends the process group
            tracker.finish()

    def _write(self, line: str) -> None:
        if distributed.is_first():
            tqdm.write(line)


def hyperparameters(config: Config) -> dict[str, Any]:
    """Every setting by its dotted key, for trackers: numbers as numbers, by which they sort."""
    plain = (bool, int, float, str)
    return {k: v if isinstance(v, plain) else str(v) for k, v in config.settings().items()}


def _line(entry: Entry) -> str:
    return json.dumps(entry) + "\n"
