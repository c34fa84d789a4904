"""Hard negatives for pairs: texts that a model finds close to an anchor, and that are not its own.

The search is sentence-transformers' ``mine_hard_negatives``. Texts, their embeddings and the
candidates of every anchor are held in memory; similarities are computed in blocks.
"""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.util import mine_hard_negatives

from simcse.config.settings import DataConfig
from simcse.data.documents import Documents, query_and_rest
from simcse.data.rows import read_rows
from simcse.errors import UserError, first_line, naming_memory
from simcse.files import replacing_alone

_BLOCK = 2**26  # similarities in memory at a time

Pair = tuple[str, str]


@dataclass(frozen=True)
class Rules:
    """Which texts may be negatives of an anchor."""

    negatives: int = 3
    """Of each row; a row for which fewer are found is left out."""
    margin: float | None = None
    """How far below the positive's a negative's similarity has to be."""
    relative_margin: float | None = 0.05
    """The same as a share of the positive's similarity."""
    max_score: float | None = None
    """Highest similarity."""
    range_min: int = 0
    """How many of the closest are passed over."""
    range_max: int | None = None
    """How many of the closest are looked at; ``None`` goes by the other rules."""


def pairs_of(data: DataConfig) -> list[Pair]:
    """Anchor and positive of every row, each pair once; a sentence is its own positive.

    Of documents, those that may be trained on: the title (or the first sentence) and the rest.

    Raises:
        UserError: Unreadable or malformed input, a form without pairs, or no pair.
    """
    if data.form == "labelled":
        raise UserError(
            "data.form: labelled has no pairs to mine for; allowed are sentences, pairs, nli, "
            "documents"
        )
    if data.form == "documents":
        found = (query_and_rest(each, data.language) for each in Documents(data).on("train"))
        pairs = [pair for pair in found if pair is not None]
    else:
        rows = read_rows(data, Counter())
        pairs = [(row.texts[0], row.texts[min(1, len(row.texts) - 1)]) for row in rows]
    if not pairs:
        raise UserError(f"data.train: no text in {data.title}")
    return list(dict.fromkeys(pairs))


def mine(
    pairs: Sequence[Pair],
    model: SentenceTransformer,
    rules: Rules,
    batch_size: int,
    cross_encoder: CrossEncoder | None = None,
) -> list[dict[str, str]]:
    """Rows with the keys ``anchor``, ``positive``, ``negative_1``, and so on.

    Args:
        pairs: Distinct; the other positives are the candidates.
        model: Finds the candidates.
        rules: Which of them are negatives.
        batch_size: Texts a forward pass.
        cross_encoder: Its scores take the place of the model's similarities in the rules.

    Raises:
        UserError: The rules leave no row, or contradict one another; memory does not suffice.
    """
    anchors, positives = zip(*pairs, strict=True)
    with naming_memory("while mining", "--batch-size", "the number of rows"):
        try:
            found = mine_hard_negatives(
                Dataset.from_dict({"anchor": anchors, "positive": positives}),
                model,
                cross_encoder=cross_encoder,
                range_min=rules.range_min,
                range_max=rules.range_max,
                max_score=rules.max_score,
                absolute_margin=rules.margin,
                relative_margin=rules.relative_margin,
                num_negatives=rules.negatives,
                output_format="n-tuple",
                batch_size=batch_size,
                faiss_batch_size=max(1, _BLOCK // len(pairs)),
                use_faiss=importlib.util.find_spec("faiss") is not None,
                verbose=False,
            )
        except ValueError as error:  # rules that contradict one another
            raise UserError(f"mine: {first_line(error)}") from error
    if not len(found):
        raise UserError(
            f"mine: no row has {rules.negatives} negatives by these rules; lower --negatives, "
            "--margin or --relative-margin, or raise --max-score or --range-max"
        )
    return list(found)


def write_rows(rows: Sequence[dict[str, str]], output: Path) -> None:
    """A jsonl file that ``data.form=pairs`` reads; it appears whole or not at all."""
    with replacing_alone(output) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
