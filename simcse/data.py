"""Training text: read, validate, tokenise once into a memory-mapped cache.

Text streams through: a corpus larger than memory works. Each source yields places and texts; the
places (file:line) are for error messages.
"""

from __future__ import annotations

import csv
import glob
import gzip
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from simcse import docstrings
from simcse.config import DataConfig
from simcse.errors import UserError
from simcse.files import cache_folder, replacing

CACHE_VERSION = 1
EMBEDDED_TEXT = "docstrings"
SUFFIXES = (".txt", ".csv", ".tsv", ".jsonl", ".parquet")
# A longer line is a binary file or a whole corpus without line breaks, never a sentence.
MAX_CHARACTERS = 1_000_000
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

    def __str__(self) -> str:
        share = self.truncated / max(self.rows, 1)
        return (
            f"{self.rows:,} rows with text, {self.empty:,} empty (skipped), {self.duplicate:,} "
            f"duplicate (skipped), {self.truncated:,} longer than max_length (cut; {share:.1%})"
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
    sources = [resolved for name in config.train for resolved in _resolve(name, config)]
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


def read_sentences(path: Path, column: str | None = None) -> Iterator[str]:
    """All texts of one file, empty ones too; formats and errors as in load_training_data."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    return (text for _, text in _File(path, _suffix(path)).read(column))


@dataclass(frozen=True)
class _Docstrings:
    def identity(self) -> list[object]:
        return [EMBEDDED_TEXT, docstrings.fingerprint(docstrings.training_sentences())]

    def read(self, column: str | None) -> Iterator[tuple[str, str]]:
        return ((EMBEDDED_TEXT, sentence) for sentence in docstrings.training_sentences())


@dataclass(frozen=True)
class _HubDataset:
    name: str
    split: str
    data: Dataset

    def identity(self) -> list[object]:
        return [self.name, self.split, self.data._fingerprint]

    def read(self, column: str | None) -> Iterator[tuple[str, str]]:
        chosen = _choose_column(self.name, self.data.column_names, column)
        for number, value in enumerate(self.data[chosen], 1):
            yield _text(f"{self.name}[{self.split}]:{number}", value)


@dataclass(frozen=True)
class _File:
    path: Path
    suffix: str

    def identity(self) -> list[object]:
        status = self.path.stat()
        return [str(self.path.resolve()), status.st_size, status.st_mtime_ns]

    def read(self, column: str | None) -> Iterator[tuple[str, str]]:
        if self.suffix == ".parquet":
            yield from self._read_parquet(column)
            return
        try:
            with self._open() as file:
                lines = self._lines(file)
                if self.suffix == ".txt":
                    yield from lines
                elif self.suffix == ".jsonl":
                    yield from self._read_jsonl(lines, column)
                else:
                    yield from self._read_csv(lines, column)
        except (EOFError, gzip.BadGzipFile) as error:
            raise UserError(f"{self.path}: broken gzip file: {error}") from error

    def _open(self) -> IO[bytes]:
        # A BOM-less view: utf-8-sig is applied to the first line only, in _lines.
        return gzip.open(self.path, "rb") if self.path.suffix == ".gz" else self.path.open("rb")  # type: ignore[return-value]

    def _lines(self, file: IO[bytes]) -> Iterator[tuple[str, str]]:
        number = 0
        while line := file.readline(4 * MAX_CHARACTERS):
            number += 1
            place = f"{self.path}:{number}"
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{place}: not UTF-8 text (byte {error.start} of the line)"
                ) from error
            if len(text) > MAX_CHARACTERS:
                raise UserError(
                    f"{place}: line longer than {MAX_CHARACTERS:,} characters; expected one "
                    "sentence a line"
                )
            if "\0" in text:
                raise UserError(f"{place}: NUL character; is this a text file?")
            yield place, text.rstrip("\r\n")

    def _read_jsonl(
        self, lines: Iterable[tuple[str, str]], column: str | None
    ) -> Iterator[tuple[str, str]]:
        for place, line in lines:
            if not line.strip():
                yield place, ""
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{place}: not valid JSON: {error.msg}") from error
            if not isinstance(row, dict):
                raise UserError(f"{place}: expected a JSON object, found {type(row).__name__}")
            yield _text(place, row[_choose_column(place, list(row), column)])

    def _read_csv(
        self, lines: Iterator[tuple[str, str]], column: str | None
    ) -> Iterator[tuple[str, str]]:
        csv.field_size_limit(MAX_CHARACTERS)
        delimiter = "\t" if self.suffix == ".tsv" else ","
        reader = csv.reader((f"{text}\n" for _, text in lines), delimiter=delimiter, strict=True)
        try:
            header = next(reader, [])
            index = header.index(_choose_column(f"{self.path}:1", header, column)) if header else 0
            for row in reader:
                place = f"{self.path}:{reader.line_num}"
                if row and len(row) != len(header):
                    raise UserError(f"{place}: {len(row)} fields, the header has {len(header)}")
                yield place, row[index] if row else ""
        except csv.Error as error:
            raise UserError(f"{self.path}:{reader.line_num}: not valid csv: {error}") from error

    def _read_parquet(self, column: str | None) -> Iterator[tuple[str, str]]:
        try:
            file = pyarrow.parquet.ParquetFile(self.path)
        except pa.ArrowInvalid as error:
            raise UserError(f"{self.path}: not a parquet file: {error}") from error
        chosen = _choose_column(str(self.path), file.schema_arrow.names, column)
        number = 0
        for batch in file.iter_batches(columns=[chosen]):
            for value in batch.column(0).to_pylist():
                number += 1
                yield _text(f"{self.path}: row {number}", value)


_Source = _Docstrings | _HubDataset | _File


def _resolve(name: str, config: DataConfig) -> Iterator[_Source]:
    if name == EMBEDDED_TEXT:
        yield _Docstrings()
        return
    path = Path(name)
    if path.is_file():
        yield _File(path, _suffix(path))
    elif glob.has_magic(name):
        files = sorted(
            Path(match)
            for match in glob.glob(name, recursive=True)  # noqa: PTH207 (Path.glob: relative only)
            if Path(match).is_file()
        )
        if not files:
            raise UserError(f"data.train: no file matches {name}")
        yield from (_File(file, _suffix(file)) for file in files)
    elif path.is_dir():
        raise UserError(f"data.train: {name} is a folder; name its files, such as {name}/*.txt")
    elif ":" not in name and (path.is_absolute() or name.count("/") > 1 or _has_data_suffix(path)):
        raise UserError(f"data.train: {name}: no such file")
    else:
        yield from _from_hub(name, config)


def _from_hub(name: str, config: DataConfig) -> Iterator[_Source]:
    """``user/name`` is a data set, ``user/name:file`` one file of its repository, read as it is."""
    from datasets import load_dataset
    from huggingface_hub import hf_hub_download

    repository, _, file = name.partition(":")
    try:
        if file:
            local = Path(
                hf_hub_download(repository, file, repo_type="dataset", revision=config.revision)
            )
            yield _File(local, _suffix(Path(file)))
        else:
            data = load_dataset(repository, split=config.split, revision=config.revision)
            yield _HubDataset(repository, config.split, data)
    except UserError:
        raise
    except Exception as error:  # every kind of network, authentication and lookup error
        raise UserError(
            f"data.train: {name} is no file here and could not be had from the Hugging Face Hub: "
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        ) from error


def _has_data_suffix(path: Path) -> bool:
    return bool(set(path.suffixes[-2:]) & {*SUFFIXES, ".gz"})


def _suffix(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    suffix = suffixes[-1] if suffixes else ""
    if suffix not in SUFFIXES:
        allowed = ", ".join(SUFFIXES)
        raise UserError(
            f"{path}: unknown kind of file {suffix!r}; allowed are {allowed}, also with .gz"
        )
    return suffix


def _choose_column(place: str, names: list[str], column: str | None) -> str:
    if column is not None:
        if column not in names:
            raise UserError(
                f"{place}: no column {column!r} (data.column); found {', '.join(names)}"
            )
        return column
    if len(names) != 1:
        raise UserError(f"{place}: set data.column to one of {', '.join(names)}")
    return names[0]


def _text(place: str, value: object) -> tuple[str, str]:
    if value is None:
        return place, ""
    if not isinstance(value, str):
        raise UserError(f"{place}: expected text, found {type(value).__name__}")
    return place, value


def _tokenize(
    rows: Iterator[tuple[str, str]], tokenizer: PreTrainedTokenizerBase, max_length: int, path: Path
) -> TextCounts:
    """Write token ids of all non-empty rows to ``path``; count what was read."""
    total = truncated = empty = 0
    hashes = []
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, _SCHEMA) as writer:
        while chunk := list(islice(rows, _CHUNK)):
            texts = [_well_formed(place, text) for place, text in chunk if text.strip()]
            empty += len(chunk) - len(texts)
            if not texts:
                continue
            ids, cut = tokenize_texts(texts, tokenizer, max_length)
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
    return TextCounts(rows=total, empty=empty, duplicate=total - distinct, truncated=truncated)


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
    sources: list[_Source], config: DataConfig, tokenizer: PreTrainedTokenizerBase
) -> str:
    # The serialised tokenizer holds vocabulary, normalisation and special-token template.
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    rules = (
        backend.to_str()
        if backend is not None
        else json.dumps([repr(tokenizer), tokenizer.get_vocab()])
    )
    parts = [
        CACHE_VERSION,
        [s.identity() for s in sources],
        config.column,
        config.max_length,
        rules,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]
