"""How the rows of a batch become the views that the encoder sees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from simcse.config.settings import ViewConfig
from simcse.data.positives import Positives
from simcse.data.tokens import Ids, prompt_ids, special_ends


@dataclass(frozen=True)
class View:
    """Changes of one view's token ids; special tokens at both ends stay where they are."""

    repeat: float = 0.0
    cutoff: float = 0.0
    shuffle: bool = False
    prompt: tuple[int, ...] = ()
    """Ids before everything else but special tokens."""
    before: tuple[int, ...] = ()
    """Ids of the template's words before the text."""
    after: tuple[int, ...] = ()
    start: int = 0
    """Special tokens at the start of an input, such as [CLS]."""
    end: int = 0

    @classmethod
    def of(cls, config: ViewConfig, tokenizer: PreTrainedTokenizerBase, prompt: str = "") -> View:
        """A view of a config, its template and the prompt tokenised."""
        start, end = special_ends(tokenizer)
        before, after = (config.template or "{}").split("{}")
        ids = [tuple(tokenizer(t, add_special_tokens=False)["input_ids"]) for t in (before, after)]
        start_ids = tuple(prompt_ids(prompt, tokenizer)[0])
        return cls(
            config.repeat, config.cutoff, config.shuffle, start_ids, ids[0], ids[1], start, end
        )

    @property
    def is_plain(self) -> bool:
        """Whether token ids pass unchanged."""
        changes = (self.repeat, self.cutoff, self.shuffle, self.prompt, self.before, self.after)
        return not any(changes)

    def longest(self, tokens: int) -> int:
        """Most tokens of the view of a text that has so many, special tokens included."""
        inner = tokens - self.start - self.end
        repeated = most_repeats(inner, self.repeat) if self.repeat else 0
        return tokens + repeated + len(self.prompt) + len(self.before) + len(self.after)

    def apply(self, ids: Ids, random: np.random.Generator) -> tuple[Ids, list[int]]:
        """Token ids of the view and its attention mask, in the order repeat, shuffle, cutoff."""
        inner = ids[self.start : len(ids) - self.end]
        if self.repeat and inner:
            inner = repeat_words(inner, self.repeat, random)
        if self.shuffle:
            inner = [inner[position] for position in random.permutation(len(inner))]
        seen = [1] * len(inner)
        if self.cutoff and inner:
            seen = cut_off(len(inner), self.cutoff, random)
        result = [
            *ids[: self.start],
            *self.prompt,
            *self.before,
            *inner,
            *self.after,
            *ids[len(ids) - self.end :],
        ]
        mask = [1] * (self.start + len(self.prompt) + len(self.before)) + seen
        return result, mask + [1] * (len(result) - len(mask))


def repeat_words(ids: Ids, rate: float, random: np.random.Generator) -> Ids:
    """Double some tokens in place (ESimCSE, section 3.1, https://arxiv.org/abs/2109.04380).

    Their number is drawn from 0 to max(2, rate · tokens), both included, as far as there are so
    many tokens.
    """
    count = int(random.integers(0, most_repeats(len(ids), rate) + 1))
    chosen = set(random.choice(len(ids), count, replace=False).tolist())
    return [token for i, token in enumerate(ids) for _ in range(2 if i in chosen else 1)]


def most_repeats(tokens: int, rate: float) -> int:
    """How many of so many tokens :func:`repeat_words` doubles at most."""
    return min(max(2, int(rate * tokens)), tokens)


def cut_off(tokens: int, rate: float, random: np.random.Generator) -> list[int]:
    """Attention mask that hides each token with probability ``rate`` and leaves at least one."""
    seen = random.random(tokens) >= rate
    if not seen.any():
        seen[random.integers(tokens)] = True
    return [int(flag) for flag in seen]


@dataclass
class ViewCollator:
    """Pads a batch and lays out its columns, all rows of one column after the other.

    A sentence stands in both columns, a pair or triplet brings its own; with ``paired`` the first
    half of the rows are anchors and the second half their positives. The result is the features of
    one forward pass:

    - ``input_ids``, ``attention_mask``: int64, ``(columns * batch, length)``
    - ``identities``: int64, ``(columns, batch)``, equal where texts are
    - ``labels``: int64, ``(batch,)``, with ``paired`` or ``positives`` only
    - what ``lookups`` find for ``identities``: float32, ``(columns, batch, dim)``
    - ``text_ids``, ``text_mask``: int64, ``(columns * batch, length)``, the texts as they are
      before a view changes them, with ``keeps_texts`` only

    A view is a function of its text, its column, the seed and the epoch: it is the same whichever
    process or worker makes it and wherever a run is resumed, and another one in the next epoch.
    """

    pad_token_id: int
    views: tuple[View, View] = (View(), View())
    single: bool = False
    """A sentence stands in one column only, for objectives that compare no views."""
    paired: bool = False
    positives: Positives | None = None
    """Rows are passages of documents: what of them becomes anchor and positive."""
    keeps_texts: bool = False
    padding_side: str = "right"
    seed: int = 0
    lookups: dict[str, Callable[[np.ndarray], np.ndarray]] = field(default_factory=dict)
    """Embeddings of the texts by another model, by the name of the feature."""
    epoch: int = 0
    """Counted from 0; set before the epoch's first batch is made."""

    def features(self, rows: list[dict[str, Any]], device: torch.device) -> dict[str, Tensor]:
        """A batch as the features of a forward pass, on a device."""
        return {key: value.to(device) for key, value in self(rows).items()}

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Collate rows with the keys ``input_ids``, ``text_hash``, ``label``."""
        columns, hashes = self._columns(rows)
        ids, masks = [], []
        for number, column in enumerate(columns):
            view = self.views[min(number, 1)]
            for row, text in zip(column, hashes[number], strict=True):
                changed, mask = row, [1] * len(row)
                if not view.is_plain:
                    changed, mask = view.apply(row, self._generator(number, text))
                ids.append(changed)
                masks.append(mask)
        batch = {
            "input_ids": self._padded(ids, self.pad_token_id),
            "attention_mask": self._padded(masks, 0),
            "identities": torch.tensor(hashes),
        }
        if self.keeps_texts:
            texts = [row for column in columns for row in column]
            batch["text_ids"] = self._padded(texts, self.pad_token_id)
            batch["text_mask"] = self._padded([[1] * len(row) for row in texts], 0)
        if self.paired or self.positives is not None:
            # Of anchors; texts of one document are not each other's negatives.
            batch["labels"] = torch.tensor([row["label"] for row in rows[: len(columns[0])]])
        for name, lookup in self.lookups.items():
            batch[name] = torch.from_numpy(lookup(np.array(hashes)))
        return batch

    def _columns(self, rows: list[dict[str, Any]]) -> tuple[list[list[Ids]], list[list[int]]]:
        """Token ids of each column's texts, and integers that are equal where texts are."""
        if self.positives is not None:
            pairs = [self.positives.draw(row, self._generator(2, row["row_hash"])) for row in rows]
            sides = [[pair[side] for pair in pairs] for side in range(1 if self.single else 2)]
            return [[t[0] for t in side] for side in sides], [
                [t[1] for t in side] for side in sides
            ]
        width = range(len(rows[0]["input_ids"]))
        columns = [[row["input_ids"][i] for row in rows] for i in width]
        hashes = [[row["text_hash"][i] for row in rows] for i in width]
        if self.paired:
            half = len(rows) // 2
            return [columns[0][:half], columns[0][half:]], [hashes[0][:half], hashes[0][half:]]
        if len(columns) == 1 and not self.single:
            columns, hashes = columns * 2, hashes * 2
        return columns, hashes

    def _generator(self, number: int, key: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, self.epoch, number, key % 2**64))

    def _padded(self, rows: list[list[int]], value: int) -> Tensor:
        tensors = [torch.tensor(row, dtype=torch.int64) for row in rows]
        return pad_sequence(
            tensors, batch_first=True, padding_value=value, padding_side=self.padding_side
        )
