"""Which parts of a passage become anchor and positive."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from simcse.config.settings import PositiveKind
from simcse.data.tokens import Ids, special_ends

Text = tuple[Ids, int]
"""Token ids, special tokens included, and an integer that is equal where texts are."""


@dataclass(frozen=True)
class Positives:
    """Draws a pair of texts from a passage of a document.

    - ``dropout``: one sentence, for both views (SimCSE).
    - ``spans``: two runs of sentences that do not overlap. Where one of them is a single sentence
      this is the inverse cloze task (Lee et al. 2019, https://arxiv.org/abs/1906.00300); drawing
      both is independent cropping (Contriever, https://arxiv.org/abs/2112.09118) at the borders of
      sentences.
    - ``title``: the document's title and a run of sentences.

    A passage that does not have what is drawn (one sentence, no title) takes another kind that is
    asked for, or ``dropout``. Runs go on as far as there is room.

    Args:
        weights: How often each kind is drawn.
        max_length: Most tokens of a text, special tokens included.
        start: Special tokens at the start of an input.
        end: At its end.
    """

    weights: Mapping[PositiveKind, float]
    max_length: int
    start: int
    end: int

    @classmethod
    def of(
        cls,
        weights: Mapping[PositiveKind, float],
        max_length: int,
        tokenizer: PreTrainedTokenizerBase,
    ) -> Positives:
        """For a tokenizer's inputs."""
        return cls(weights, max_length, *special_ends(tokenizer))

    def draw(self, row: Mapping[str, Any], random: np.random.Generator) -> tuple[Text, Text]:
        """Anchor and positive.

        Args:
            row: ``input_ids`` and ``text_hash`` of the title, which may have no tokens of its own,
                and of each sentence.
            random: Decides everything.
        """
        texts = list(zip(row["input_ids"], row["text_hash"], strict=True))
        title, passage = texts[0], texts[1:]
        possible = {
            "spans": len(passage) > 1,
            "title": len(title[0]) > self.start + self.end,
            "dropout": True,
        }
        kinds = [kind for kind in self.weights if possible[kind]]
        shares = np.array([self.weights[kind] for kind in kinds])
        kind = random.choice(kinds, p=shares / shares.sum()) if kinds else "dropout"
        if kind == "spans":
            cut = int(random.integers(1, len(passage)))
            pair = self._run(passage[:cut], random), self._run(passage[cut:], random)
            return pair if random.random() < 0.5 else (pair[1], pair[0])
        if kind == "title":
            return title, self._run(passage, random)
        chosen = passage[random.integers(len(passage))]
        return chosen, chosen

    def _run(self, sentences: Sequence[Text], random: np.random.Generator) -> Text:
        """A run of sentences: from a random one to a random one after it."""
        first = int(random.integers(len(sentences)))
        last = int(random.integers(first, len(sentences)))
        chosen = sentences[first : last + 1]
        if len(chosen) == 1:
            return chosen[0]
        ids = chosen[0][0]
        inner = [token for text, _ in chosen for token in text[self.start : len(text) - self.end]]
        room = self.max_length - self.start - self.end
        tail = ids[len(ids) - self.end :] if self.end else []
        return [*ids[: self.start], *inner[:room], *tail], hash(tuple(h for _, h in chosen))
