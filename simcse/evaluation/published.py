"""Published scores on the seven STS tasks, to print next to a user's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

from simcse.errors import UserError
from simcse.evaluation.names import STS, mteb_name, nearest
from simcse.evaluation.protocol import Scores
from simcse.evaluation.table import aligned, average_of_seven

FILE = Path(__file__).parent.parent / "assets" / "published.yaml"


@dataclass(frozen=True)
class Published:
    """One line of a paper's table; scores ×100, as printed there."""

    group: str
    name: str
    scores: tuple[float, ...] | None
    """The seven tasks in the order of :data:`~simcse.evaluation.names.STS`."""
    average: float
    source: str
    note: str | None

    @property
    def slug(self) -> str:
        """Its name for ``--against``, such as ``bert-base-unsup/SimCSE``."""
        return f"{self.group}/{self.name}"


def published() -> list[Published]:
    """Every entry of ``assets/published.yaml``."""
    groups = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return [
        Published(
            group,
            row["name"],
            tuple(row["scores"][:7]) if "scores" in row else None,
            row["scores"][7] if "scores" in row else row["average"],
            row["source"],
            row.get("note"),
        )
        for group, rows in groups.items()
        for row in rows
    ]


def find(word: str) -> list[Published]:
    """Entries of a group (``bert-base-unsup``) or one entry (``bert-base-unsup/SimCSE``).

    Raises:
        UserError: There is no such name.
    """
    entries = published()
    found = [entry for entry in entries if word in (entry.group, entry.slug)]
    if not found:
        groups = dict.fromkeys(entry.group for entry in entries)
        names = [entry.slug for entry in entries] if "/" in word else groups
        raise UserError(f"--against {word}: unknown{nearest(word, names)}")
    return found


def comparison(name: str, scores: Scores, rivals: list[Published]) -> str:
    """A table with a user's model above the published ones, and their sources."""
    # mteb's text is the same but for SICK-R.
    mine_by_task = {
        task: scores.get(task) or (scores.get(mteb_name(task)) if task != "SICK-R" else None)
        for task in STS
    }
    found = {task: values for task, values in mine_by_task.items() if values}
    if not found:
        raise UserError(f"--against: none of {', '.join(STS)} was scored")
    mine = [100 * float(found[t]["cosine_spearman"]) if t in found else None for t in STS]
    average = average_of_seven(found)
    rows = [["model", *STS, "average"]]
    rows.append([name, *map(_cell, mine), _cell(None if average is None else 100 * average)])
    notes = []
    for rival in rivals:
        rows.append([rival.name, *map(_cell, rival.scores or (None,) * 7), _cell(rival.average)])
        notes.append(f"{rival.name}: {rival.source}" + (f" ({rival.note})" if rival.note else ""))
    head = (
        f"published, {rivals[0].group}: cosine Spearman ×100, single models unless noted; SICK-R "
        "is SentEval's"
    )
    return "\n".join([head, aligned(rows, left=1), "", *notes])


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
