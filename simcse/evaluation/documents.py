"""A test without labels: a held-out document's title, or first sentence, has to find its rest."""

from __future__ import annotations

from collections.abc import Sequence

from simcse.data.documents import Documents, Side, query_and_rest
from simcse.errors import UserError
from simcse.evaluation.tasks import RetrievalTask

FEW = 50
"""With fewer documents next to nothing can be told; a run says so."""


def document_task(
    sources: Sequence[Documents], side: Side, name: str = "documents"
) -> RetrievalTask:
    """The test on one side's documents.

    Args:
        sources: With a share held out; what several of them hold counts once.
        side: ``dev`` or ``test``.
        name: Of the task.

    Raises:
        UserError: Unreadable input, or no document of this side that can be split in two.
    """
    name = name if side == "test" else f"{name}-{side}"
    halves = {
        document.key: query_and_rest(document, documents.config.language)
        for documents in sources
        for document in documents.held_out(side)
    }
    pairs = [half for half in halves.values() if half is not None]
    if not pairs:
        raise UserError(
            f"data.held_out: {sources[0].config.held_out:g} of the documents leaves none for "
            f"{side}; raise it, or choose other evaluation.dev and evaluation.tasks"
        )
    queries, rests = zip(*pairs, strict=True)
    own = [{number: 1} for number in range(len(queries))]
    return RetrievalTask(name, list(queries), list(rests), own, metric="recall_at_10")


def too_few(task: RetrievalTask) -> str | None:
    """What a small test cannot tell, in words."""
    count = len(task.queries)
    if count >= FEW:
        return None
    interval = 196 * 0.5 / count**0.5  # of a share near one half, in points
    return (
        f"{task.name}: only {count} queries, so its score is ± {interval:.0f} points; "
        "raise data.held_out, or bring more documents"
    )
