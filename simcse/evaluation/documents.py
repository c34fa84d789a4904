"""A test without labels: a held-out document's title, or first sentence, has to find its rest."""

from __future__ import annotations

from simcse.config.settings import DataConfig
from simcse.data.documents import Document, Documents, Side, sentences
from simcse.errors import UserError
from simcse.evaluation.tasks import RetrievalTask

FEW = 50
"""With fewer documents next to nothing can be told; a run says so."""


def document_task(config: DataConfig, side: Side, name: str = "documents") -> RetrievalTask:
    """The test on one side's documents.

    Args:
        config: Documents, with a share held out.
        side: ``dev`` or ``test``.
        name: Of the task.

    Raises:
        UserError: Unreadable input, or no document of this side that can be split in two.
    """
    name = name if side == "test" else f"{name}-{side}"
    halves = [query_and_rest(document, config) for document in Documents(config).held_out(side)]
    pairs = [half for half in halves if half is not None]
    if not pairs:
        raise UserError(
            f"data.held_out: {config.held_out:g} of the documents leaves none for {side}; raise "
            "it, or choose other evaluation.dev and evaluation.tasks"
        )
    queries, documents = zip(*pairs, strict=True)
    own = [{number: 1} for number in range(len(queries))]
    return RetrievalTask(name, list(queries), list(documents), own, metric="recall_at_10")


def query_and_rest(document: Document, config: DataConfig) -> tuple[str, str] | None:
    """What searches and what is to be found; ``None`` where there is one sentence only."""
    found = sentences(document.text, config.language)
    query, *rest = [document.title, *found] if document.title else found or [""]
    return (query, " ".join(rest)) if rest else None


def too_few(task: RetrievalTask) -> str | None:
    """What a small test cannot tell, in words."""
    count = len(task.queries)
    if count >= FEW:
        return None
    interval = 196 * 0.5 / count**0.5  # of a share near one half, in points
    return (
        f"{task.name}: {count} documents are held out, so its score is ± {interval:.0f} points; "
        "raise data.held_out, or bring more documents"
    )
