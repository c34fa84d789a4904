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
class PaperResult:
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


def paper_results() -> list[PaperResult]:
    """Every entry of ``assets/published.yaml``."""
    results = []
    for group, rows in yaml.safe_load(FILE.read_text(encoding="utf-8")).items():
        for row in rows:
            *scores, average = row.get("scores") or [row["average"]]
            source, note = row["source"], row.get("note")
            results.append(
                PaperResult(group, row["name"], tuple(scores) or None, average, source, note)
            )
    return results


def find(word: str) -> list[PaperResult]:
    """Entries of a group (``bert-base-unsup``) or one entry (``bert-base-unsup/SimCSE``).

    Raises:
        UserError: There is no such name.
    """
    entries = paper_results()
    chosen = [entry for entry in entries if word in (entry.group, entry.slug)]
    if not chosen:
        groups = dict.fromkeys(entry.group for entry in entries)
        names = [entry.slug for entry in entries] if "/" in word else groups
        raise UserError(f"--against {word}: unknown{nearest(word, names)}")
    return chosen


def comparison(name: str, scores: Scores, rivals: list[PaperResult]) -> str:
    """A table with a user's model above the published ones, and their sources."""
    own: Scores = {}
    for task in STS:  # mteb's text is the same but for SICK-R
        values = scores.get(task) or (scores.get(mteb_name(task)) if task != "SICK-R" else None)
        if values:
            own[task] = values
    if not own:
        raise UserError(f"--against: none of {', '.join(STS)} was scored")
    rhos = [own[task]["cosine_spearman"] if task in own else None for task in STS]
    mine = [None if rho is None else 100 * float(rho) for rho in (*rhos, average_of_seven(own))]
    rows = [["model", *STS, "average"], [name, *map(_cell, mine)]]
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
