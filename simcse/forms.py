"""Rows of the four forms of training data: sentences, pairs, NLI, labelled text."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from simcse.errors import UserError
from simcse.readers import Fields

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


def rows_of(fields: Fields, form: str, counts: Counter[str]) -> Iterator[Row]:
    """Turn the columns of a form into rows.

    Args:
        fields: Place and columns of each row.
        form: One of :data:`simcse.settings.COLUMNS`.
        counts: Gains ``empty`` and, for NLI, what was found and made.

    Raises:
        UserError: A text of a pair is empty, a label is empty or unknown; with its place.
    """
    if form == "nli":
        yield from _triplets(fields, counts)
        return
    width: int | None = None
    for place, texts in fields:
        if not any(text.strip() for text in texts):
            counts["empty"] += 1
        elif form == "sentences":
            yield Row(place, texts)
        elif form == "labelled":
            text, label = texts
            if not text.strip():
                counts["empty"] += 1
                continue
            if not label.strip():
                raise UserError(f"{place}: empty label")
            yield Row(place, (text,), label.strip())
        else:
            _no_empty_text(place, texts)
            width = width or len(texts)
            if len(texts) != width:
                raise UserError(f"{place}: {len(texts)} columns; the rows before have {width}")
            yield Row(place, texts)


def _no_empty_text(place: str, texts: tuple[str, ...]) -> None:
    roles = ("anchor", "positive", *("hard_negative" for _ in texts[2:]))
    for role, text in zip(roles, texts, strict=True):
        if not text.strip():
            raise UserError(f"{place}: empty {role}")


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
        if not (premise.strip() and hypothesis.strip()):
            counts["empty"] += 1
            continue
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
