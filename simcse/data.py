"""Training text: read, validate, tokenise once into a memory-mapped cache.

Text streams through, so a corpus larger than memory works.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from simcse.config import DataConfig
from simcse.errors import UserError
from simcse.files import cache_folder, replacing
from simcse.readers import Source, find_sources

CACHE_VERSION = 2
_CHUNK = 10_000

_SCHEMA = pa.schema(
    [("input_ids", pa.list_(pa.int32())), ("length", pa.int32()), ("text_hash", pa.int64())]
)


@dataclass(frozen=True)
class TextCounts:
    """Rows with text, empty rows, repeats of an earlier row, rows cut at max_length."""

    rows: int
    empty: int
    duplicate: int
    truncated: int
    sha256: str
    """Of all texts, each followed by a line feed."""

    def __str__(self) -> str:
        share = self.truncated / max(self.rows, 1)
        return (
            f"{self.rows:,} rows with text, {self.empty:,} empty (skipped), {self.duplicate:,} "
            f"duplicate (skipped), {self.truncated:,} longer than max_length (cut; {share:.1%}), "
            f"sha256 {self.sha256}"
        )


def load_training_data(
    config: DataConfig, tokenizer: PreTrainedTokenizerBase, seed: int
) -> tuple[Dataset, TextCounts]:
    """Distinct training rows as token ids.

    Args:
        config: Where the text is and how long an input may get.
        tokenizer: Of the encoder to train.
        seed: Draws the rows when ``config.max_rows`` is set.

    Returns:
        A memory-mapped data set with the columns ``input_ids`` (list of int32, special tokens
        included), ``length`` (number of ids) and ``text_hash`` (64 bits), and the counts.

    Raises:
        UserError: Missing, empty, undecodable or malformed input, with file and line.
    """
    sources = [resolved for name in config.train for resolved in find_sources(name, config)]
    folder = Path(config.cache) if config.cache else cache_folder() / "tokens"
    path = folder / f"{_cache_key(sources, config, tokenizer)}.arrow"
    counts_path = path.with_suffix(".json")
    if not (path.is_file() and counts_path.is_file()):
        rows = (item for source in sources for item in source.read(config.column))
        with replacing(path) as temporary, replacing(counts_path) as counts_temporary:
            counts = _tokenize(rows, tokenizer, config.max_length, temporary)
            counts_temporary.write_text(json.dumps(asdict(counts)), encoding="utf-8")
    counts = TextCounts(**json.loads(counts_path.read_text(encoding="utf-8")))
    if counts.rows == 0:
        raise UserError(
            f"data.train: no text in {', '.join(config.train)} ({counts.empty:,} empty rows)"
        )
    dataset = Dataset.from_file(str(path))
    keep = np.unique(dataset.data.column("text_hash").to_numpy(), return_index=True)[1]
    keep.sort()
    if config.max_rows is not None and config.max_rows < len(keep):
        keep = np.sort(np.random.default_rng(seed).choice(keep, config.max_rows, replace=False))
    return (dataset if len(keep) == len(dataset) else dataset.select(keep)), counts


def _tokenize(
    rows: Iterator[tuple[str, str]], tokenizer: PreTrainedTokenizerBase, max_length: int, path: Path
) -> TextCounts:
    """Write token ids of all non-empty rows to ``path``; count what was read."""
    total = truncated = empty = 0
    hashes = []
    digest = hashlib.sha256()
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, _SCHEMA) as writer:
        while chunk := list(islice(rows, _CHUNK)):
            texts = [_well_formed(place, text) for place, text in chunk if text.strip()]
            empty += len(chunk) - len(texts)
            if not texts:
                continue
            ids, cut = tokenize_texts(texts, tokenizer, max_length)
            digest.update("".join(f"{text}\n" for text in texts).encode())
            text_hash = np.array([_hash64(text) for text in texts], dtype=np.int64)
            lengths = [len(row) for row in ids]
            writer.write_batch(
                pa.record_batch(
                    [
                        pa.array(ids, _SCHEMA.field(0).type),
                        pa.array(lengths, pa.int32()),
                        text_hash,
                    ],
                    _SCHEMA,
                )
            )
            hashes.append(text_hash)
            total += len(texts)
            truncated += cut
    distinct = len(np.unique(np.concatenate(hashes))) if hashes else 0
    return TextCounts(total, empty, total - distinct, truncated, digest.hexdigest())


def tokenize_texts(
    texts: list[str], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple[list[list[int]], int]:
    """Token ids of each text, cut at ``max_length``, and how many texts were cut."""
    encoded = tokenizer(
        texts,
        truncation=True,
        max_length=max_length,
        return_overflowing_tokens=True,
        return_attention_mask=False,
        return_token_type_ids=False,
    )
    # A long text comes back as several rows, its beginning first.
    origin = encoded["overflow_to_sample_mapping"]
    first = [row for row, text in enumerate(origin) if row == 0 or origin[row - 1] != text]
    cut = len({text for row, text in enumerate(origin) if row and origin[row - 1] == text})
    return [encoded["input_ids"][row] for row in first], cut


def _well_formed(place: str, text: str) -> str:
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise UserError(f"{place}: lone surrogate character; is this valid Unicode text?")
    return text


def _hash64(text: str) -> int:
    return int.from_bytes(
        hashlib.blake2b(text.encode(), digest_size=8).digest(), "big", signed=True
    )


def _cache_key(
    sources: list[Source], config: DataConfig, tokenizer: PreTrainedTokenizerBase
) -> str:
    # The serialised tokenizer holds vocabulary, normalisation and special-token template.
    rules = tokenizer.backend_tokenizer.to_str()
    parts = [
        CACHE_VERSION,
        [s.identity() for s in sources],
        config.column,
        config.max_length,
        rules,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]
