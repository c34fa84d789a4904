"""Reads text from files, the Hub and the docstrings, naming the place of every mistake.

Each source yields ``(place, text)``; the place, such as ``file:line``, is for error messages. Text
streams: no source is held in memory.
"""

from __future__ import annotations

import csv
import glob
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.parquet
from datasets import Dataset

from simcse import docstrings
from simcse.config import DataConfig
from simcse.errors import UserError, first_line

EMBEDDED_TEXT = "docstrings"
SUFFIXES = (".txt", ".csv", ".tsv", ".jsonl", ".parquet")
# A longer line is a binary file or a whole corpus without line breaks, never a sentence.
MAX_CHARACTERS = 1_000_000
_LONGEST = 4 * MAX_CHARACTERS + 4  # bytes


def read_sentences(path: Path, column: str | None = None) -> Iterator[str]:
    """All texts of one file, in order, empty ones too.

    Args:
        path: txt, csv, tsv, jsonl or parquet; all but parquet also with .gz.
        column: Column of a table; needed where there is more than one.

    Raises:
        UserError: Missing, undecodable or malformed file, with its line.
    """
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
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise UserError(f"{self.path}: broken gzip file: {error}") from error

    def _open(self) -> IO[bytes]:
        if self.path.suffix.lower() == ".gz":
            return gzip.open(self.path, "rb")  # type: ignore[return-value]
        return self.path.open("rb")

    def _lines(self, file: IO[bytes]) -> Iterator[tuple[str, str]]:
        number = 0
        while line := file.readline(_LONGEST):
            number += 1
            place = f"{self.path}:{number}"
            try:
                # A line cut by the limit may end inside a character; it is too long anyway.
                cut = "ignore" if len(line) == _LONGEST else "strict"
                text = line.decode("utf-8-sig" if number == 1 else "utf-8", errors=cut)
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
            except (ValueError, RecursionError) as error:
                raise UserError(f"{place}: not valid JSON: {error}") from error
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
        number = 0
        try:
            with pyarrow.parquet.ParquetFile(self.path) as file:
                chosen = _choose_column(str(self.path), file.schema_arrow.names, column)
                for batch in file.iter_batches(columns=[chosen]):
                    for value in batch.column(0).to_pylist():
                        number += 1
                        yield _text(f"{self.path}: row {number}", value)
        except (pa.ArrowException, OSError) as error:
            raise UserError(
                f"{self.path}: not a sound parquet file: {first_line(error)}"
            ) from error


Source = _Docstrings | _HubDataset | _File


def find_sources(name: str, config: DataConfig) -> Iterator[Source]:
    """The sources that one entry of ``data.train`` stands for.

    Raises:
        UserError: Nothing matches, or the Hub cannot be reached.
    """
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


def _from_hub(name: str, config: DataConfig) -> Iterator[Source]:
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
            f"{type(error).__name__}: {first_line(error)}"
        ) from error


def _has_data_suffix(path: Path) -> bool:
    return bool(set(path.suffixes[-2:]) & {*SUFFIXES, ".gz"})


def _suffix(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    suffix = suffixes[-1] if suffixes else ""
    packed_twice = suffix == ".parquet" and path.suffix.lower() == ".gz"  # parquet packs itself
    if suffix not in SUFFIXES or packed_twice:
        raise UserError(
            f"{path}: unknown kind of file {''.join(path.suffixes[-2:])!r}; allowed are "
            f"{', '.join(SUFFIXES)}, and all but parquet with .gz"
        )
    return suffix


def _choose_column(place: str, names: list[str], column: str | None) -> str:
    if column is not None:
        if column not in names:
            raise UserError(f"{place}: no column {column!r}; found {', '.join(names)}")
        return column
    if len(names) != 1:
        raise UserError(
            f"{place}: choose a column (data.column or --column), one of {', '.join(names)}"
        )
    return names[0]


def _text(place: str, value: object) -> tuple[str, str]:
    if value is None:
        return place, ""
    if not isinstance(value, str):
        raise UserError(f"{place}: expected text, found {type(value).__name__}")
    return place, value
