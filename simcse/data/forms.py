"""Rows of the forms of training data: sentences, pairs, NLI, labelled text."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from simcse.data.readers import Fields
from simcse.errors import UserError

ENTAILMENT, NEUTRAL, CONTRADICTION, NO_LABEL = "entailment", "neutral", "contradiction", "no label"
# Spellings of SNLI, MultiNLI, ANLI and their copies on the Hub, where numbers stand in this order.
NLI_LABELS = {
    **dict.fromkeys(("entailment", "entails", "e", "0", "0.0"), ENTAILMENT),
    **dict.fromkeys(("neutral", "n", "1", "1.0"), NEUTRAL),
    **dict.fromkeys(("contradiction", "contradicts", "c", "2", "2.0"), CONTRADICTION),
    **dict.fromkeys(("-", "-1", "-1.0", ""), NO_LABEL),
}


@dataclass(frozen=True)
class Row:
    """One training row."""

    place: str
    texts: tuple[str, ...]
    """One sentence; or anchor, positive and hard negatives."""
    label: str | None = None


# What may not be empty in a row; the last of pairs goes for all hard negatives.
_NEEDED = {
    "sentences": ("text",),
    "pairs": ("anchor", "positive", "hard_negative"),
    "nli": ("premise", "hypothesis"),
    "labelled": ("text", "label"),
}


def rows_of(
    fields: Fields, form: str, counts: Counter[str], incomplete: Literal["skip", "refuse"]
) -> Iterator[Row]:
    """Turn the columns of a form into rows.

    Args:
        fields: Place and columns of each row.
        form: One of :data:`simcse.config.settings.COLUMNS`.
        counts: Gains ``empty`` and what else was skipped and, for NLI, what was found and made.
        incomplete: What to do with a row of which something is empty, but not all.

    Raises:
        UserError: A label is unknown, or an incomplete row is to be refused; with its place.
    """
    fields = _complete(fields, form, counts, incomplete)
    if form == "nli":
        yield from _triplets(fields, counts)
        return
    width: int | None = None
    for place, texts in fields:
        if form == "labelled":
            text, label = texts
            yield Row(place, (text,), label.strip())
            continue
        width = width or len(texts)
        if len(texts) != width:
            raise UserError(f"{place}: {len(texts)} columns; the rows before have {width}")
        yield Row(place, texts)


def _complete(
    fields: Fields, form: str, counts: Counter[str], incomplete: Literal["skip", "refuse"]
) -> Fields:
    needed = _NEEDED[form]
    for place, texts in fields:
        found = [bool(text.strip()) for text in texts]
        if not any(found):
            counts["empty"] += 1
        elif all(found) or (form == "nli" and all(found[:2])):  # a row may be without a label
            yield place, texts
        elif incomplete == "skip":
            counts["incomplete (skipped)"] += 1
        else:
            what = needed[min(found.index(False), len(needed) - 1)]
            raise UserError(f"{place}: empty {what}; data.incomplete=skip leaves such rows out")


def _triplets(fields: Fields, counts: Counter[str]) -> Iterator[Row]:
    """SimCSE's rule (section 4.1): each entailment of a premise with a contradiction of it.

    Where there are several contradictions one is drawn, by a hash of premise and entailment, so
    that the same files give the same triplets. The premises are held in memory.
    """
    entailed: dict[str, list[tuple[str, str]]] = {}
    contradicted: dict[str, list[str]] = {}
    for place, (premise, hypothesis, spelling) in fields:
        label = NLI_LABELS.get(spelling.strip().lower())
        if label is None:
            raise UserError(
                f"{place}: label {spelling[:60]!r} unknown; allowed are "
                f"{', '.join(repr(name) for name in NLI_LABELS)}"
            )
        counts[label] += 1
        if label == ENTAILMENT:
            entailed.setdefault(premise, []).append((place, hypothesis))
        elif label == CONTRADICTION:
            contradicted.setdefault(premise, []).append(hypothesis)
    for premise, found in entailed.items():
        negatives = contradicted.get(premise)
        if negatives is None:
            counts["entailments without a contradiction"] += len(found)
            continue
        for place, positive in found:
            digest = hashlib.blake2b(f"{premise}\n{positive}".encode(), digest_size=8).digest()
            drawn = negatives[int.from_bytes(digest, "big") % len(negatives)]
            yield Row(place, (premise, positive, drawn))
