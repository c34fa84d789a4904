"""Training text: read, validate, tokenise once into a memory-mapped cache.

Text streams through, so a corpus larger than memory works.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from simcse.caches import cache_folder, cached
from simcse.config.settings import EMBEDDED_TEXT, DataConfig
from simcse.data.documents import HELD_OUT, Documents, embedded_documents, passages, sentences
from simcse.data.forms import Row, rows_of
from simcse.data.readers import Fields, Source, Wanted, all_sources, find_sources, linked_folders
from simcse.data.tokens import count_unknown, first_ids, in_chunks
from simcse.errors import UserError
from simcse.terminal import counting

CACHE_VERSION = 6
_CHUNK = 10_000

_SCHEMA = pa.schema(
    [
        ("input_ids", pa.list_(pa.list_(pa.int32()))),
        ("length", pa.int32()),
        ("text_hash", pa.list_(pa.int64())),
        ("label", pa.int64()),
        ("row_hash", pa.int64()),
    ]
)


@dataclass(frozen=True)
class TextCounts:
    """Rows with text, empty rows, skipped repeats of an earlier row, texts cut at max_length."""

    rows: int
    empty: int
    duplicate: int
    truncated: int
    sha256: str
    """Of all texts (and labels), each followed by a line feed."""
    texts: int
    """Texts of all rows: more than rows where a row is a pair or more."""
    tokens: int
    """Of all texts as they were cut, without special tokens."""
    unknown: int
    """Tokens that the tokenizer does not know."""
    found: dict[str, int] = field(default_factory=dict)
    """Incomplete rows; NLI rows by their label, and entailments without a contradiction."""

    def __str__(self) -> str:
        share = self.truncated / max(self.texts, 1)
        found = "".join(f"{count:,} {name}, " for name, count in self.found.items())
        return (
            f"{found}{self.rows:,} rows with text, {self.empty:,} empty (skipped), "
            f"{self.duplicate:,} duplicate (skipped), {self.truncated:,} of {self.texts:,} texts "
            f"longer than max_length (cut; {share:.1%} of the texts), sha256 {self.sha256}"
        )


def load_training_data(
    config: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    documents: Documents | None = None,
) -> tuple[Dataset, TextCounts]:
    """Training rows as token ids, distinct ones unless ``config.duplicates`` keeps repeats.

    Args:
        config: Where the text is and how long an input may get.
        tokenizer: Of the encoder to train.
        seed: Draws the rows when ``config.max_rows`` is set.
        documents: Those of the config, where they have been read already.

    Returns:
        A memory-mapped data set and the counts. Columns: ``input_ids`` (a list of int32 for each
        text of the row, special tokens included), ``length`` (ids of its longest text),
        ``text_hash`` (64 bits a text), ``label`` (64 bits; 0 where there is none), ``row_hash``.

    Raises:
        UserError: Missing, empty, undecodable or malformed input, with file and line.
    """
    if config.form == "documents":
        documents = documents or Documents(config)
    sources = documents.sources if documents else all_sources(config)
    folder = Path(config.cache) if config.cache else cache_folder() / "tokens"
    path = folder / f"{_cache_key(sources, config, tokenizer)}.arrow"

    def make(temporary: Path) -> dict[str, Any]:
        found: Counter[str] = Counter()
        rows = _passages(documents, found) if documents else read_rows(config, found)
        rows = counting(rows, "reading", "rows")
        return asdict(_tokenize(rows, found, tokenizer, config, temporary))

    if links := linked_folders(sources):
        print(f"warning: data.train: links to folders are left out ({links}); name the folders too")
    counts = TextCounts(**cached(path, make))
    if counts.rows == 0:
        raise UserError(f"data.train: no text in {', '.join(config.train)}: {counts}")
    dataset = Dataset.from_file(str(path))
    if config.duplicates == "keep":
        counts = replace(counts, duplicate=0)
        keep = np.arange(len(dataset))
    else:
        keep = np.unique(dataset.data.column("row_hash").to_numpy(), return_index=True)[1]
        keep.sort()
    if config.max_rows is not None and config.max_rows < len(keep):
        keep = np.sort(np.random.default_rng(seed).choice(keep, config.max_rows, replace=False))
    return (dataset if len(keep) == len(dataset) else dataset.select(keep)), counts


def texts_of(sets: Iterable[DataConfig], hashes: np.ndarray) -> Iterator[tuple[int, str]]:
    """The texts with some of the hashes in ``text_hash``, each once with its hash, read again.

    Not for ``form: documents``, whose texts are drawn from passages.
    """
    wanted = set(hashes.tolist())
    for row in chain.from_iterable(read_rows(config, Counter()) for config in sets):
        for text in row.texts:
            if (digest := _hash64(text)) in wanted:
                wanted.remove(digest)
                yield digest, text


def read_rows(config: DataConfig, found: Counter[str]) -> Iterator[Row]:
    """The rows of a set that is no documents, as text; counts of :func:`.rows_of`."""
    fields = chain.from_iterable(_fields(name, config) for name in config.train)
    return rows_of(fields, config.form, found, config.incomplete)


def _fields(name: str, config: DataConfig) -> Fields:
    if name == EMBEDDED_TEXT:  # as sentences: those that no held-out document has
        documents = Documents(embedded_documents(config.held_out))
        held_out = {
            sentence
            for side in HELD_OUT
            for document in documents.on(side)
            for sentence in sentences(document.text, "en")
        }
        for document in documents.on("train"):
            for sentence in sentences(document.text, "en"):
                if sentence not in held_out:
                    yield document.place, (sentence,)
        return
    for source in find_sources(name, config):
        yield from source.read(Wanted.of(config))


def _passages(documents: Documents, found: Counter[str]) -> Iterator[Row]:
    """Title and sentences of each passage that may be trained on, labelled by its document."""
    found.update(documents.counts())
    for document in documents.on("train"):
        for texts in passages(document, documents.config):
            yield Row(document.place, texts, str(document.key))


def _tokenize(
    rows: Iterator[Row],
    found: Counter[str],
    tokenizer: PreTrainedTokenizerBase,
    config: DataConfig,
    path: Path,
) -> TextCounts:
    """Write token ids of all rows to ``path``; count what was read."""
    total = truncated = texts_total = tokens = unknown = 0
    hashes = []
    digest = hashlib.sha256()
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, _SCHEMA) as writer:
        for chunk in in_chunks(rows, _CHUNK, lambda row: sum(map(len, row.texts))):
            texts = [text for row in chunk for text in row.texts]
            ids, cut = first_ids(texts, tokenizer, config.max_length)
            remaining = iter(zip(ids, map(_hash64, texts), strict=True))
            columns: list[list[object]] = [[] for _ in _SCHEMA]
            for row in chunk:
                row_ids, text_hash = zip(*islice(remaining, len(row.texts)), strict=True)
                label = 0 if row.label is None else _hash64(row.label)
                values = (
                    list(row_ids),
                    _length(row_ids, config),
                    list(text_hash),
                    label,
                    _row_hash(text_hash, label),
                )
                for column, value in zip(columns, values, strict=True):
                    column.append(value)
                label_text = () if row.label is None else (row.label,)
                digest.update("".join(f"{text}\n" for text in (*row.texts, *label_text)).encode())
            arrays = [pa.array(c, f.type) for c, f in zip(columns, _SCHEMA, strict=True)]
            writer.write_batch(pa.record_batch(arrays, _SCHEMA))
            hashes.append(np.asarray(columns[-1], dtype=np.int64))
            total += len(chunk)
            texts_total += len(texts)
            truncated += cut
            counted = count_unknown(ids, tokenizer)
            unknown, tokens = unknown + counted[0], tokens + counted[1]
    distinct = len(np.unique(np.concatenate(hashes))) if hashes else 0
    empty = found.pop("empty", 0)
    return TextCounts(
        total,
        empty,
        total - distinct,
        truncated,
        digest.hexdigest(),
        texts_total,
        tokens,
        unknown,
        dict(found),
    )


def _length(row_ids: Sequence[Sequence[int]], config: DataConfig) -> int:
    """Tokens of a row's longest text; of a passage about those of one of two spans."""
    if config.form == "documents":
        return min(config.max_length, sum(map(len, row_ids[1:])) // 2 + 1)
    return max(map(len, row_ids))


def _hash64(text: str) -> int:
    return int.from_bytes(
        hashlib.blake2b(text.encode(), digest_size=8).digest(), "big", signed=True
    )


def _row_hash(text_hash: Sequence[int], label: int) -> int:
    if len(text_hash) == 1 and label == 0:
        return text_hash[0]
    parts = b"".join(value.to_bytes(8, "big", signed=True) for value in (*text_hash, label))
    return int.from_bytes(hashlib.blake2b(parts, digest_size=8).digest(), "big", signed=True)


def _cache_key(
    sources: list[Source], config: DataConfig, tokenizer: PreTrainedTokenizerBase
) -> str:
    # The serialised tokenizer holds vocabulary, normalisation and special-token template, and what
    # the last call said of length.
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    parts = [
        CACHE_VERSION,
        [s.identity() for s in sources],
        [config.form, config.incomplete, asdict(Wanted.of(config))],
        [config.held_out, config.passage, config.language]
        if config.form == "documents" or EMBEDDED_TEXT in config.train
        else [],
        config.max_length,
        backend.to_str(),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]
