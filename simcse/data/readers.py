"""Reads text from files and the Hub, naming the place of every mistake.

Each source yields ``(place, fields)``, the wanted columns of a row; the place, such as
``file:line``, is for error messages. Text streams: no source is held in memory.
"""

from __future__ import annotations

import csv
import glob
import gzip
import hashlib
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.parquet
from datasets import Dataset

from simcse.config.settings import COLUMNS, EMBEDDED_TEXT, DataConfig, Encoding, OwnTest
from simcse.data.text_files import (
    DOCUMENT_SUFFIXES,
    MOST_CHARACTERS,
    document_files,
    plain_text,
    read_document,
)
from simcse.errors import UserError, first_line
from simcse.hub import failures
from simcse.hub.snapshots import snapshot

_EMBEDDED_FILE = Path(__file__).parent.parent / "assets" / "python-docs.jsonl.gz"
SUFFIXES = (".txt", ".csv", ".tsv", ".jsonl", ".parquet")
# A longer line is a binary file or a whole corpus without line breaks, never a sentence.
MAX_CHARACTERS = 1_000_000
_LONGEST = 4 * MAX_CHARACTERS + 4  # bytes
_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_OPTIONS = "--"
_NAME_WORDS = 5  # with more it is a text, and the table has no header
_SURROGATE = re.compile("[\ud800-\udfff]")
_PARQUET_ROWS = 1000  # in memory at a time; pyarrow's default may be gigabytes of long texts


@dataclass(frozen=True)
class Wanted:
    """Which columns to read, for a form of :class:`~simcse.config.settings.DataConfig`."""

    form: str = "sentences"
    columns: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    """Names of the columns of csv and tsv files without a header."""
    quotes: bool = True
    separator: str | None = None
    """Between the fields of csv and tsv files; ``None`` goes by the file's name."""
    encoding: str = "utf-8"
    settings: str = "data."
    """Before the names of settings in messages; ``--`` where they are options."""

    @classmethod
    def of(cls, config: DataConfig) -> Wanted:
        """What a config asks for."""
        return cls(
            config.form,
            tuple(config.columns),
            tuple(config.names),
            config.quotes,
            config.separator,
            config.encoding,
        )

    def choose(self, place: str, found: list[str]) -> Chosen:
        """The columns to read, from those that a table has.

        Raises:
            UserError: A column is missing or there twice, or the names do not tell which ones are
                meant.
        """
        count = Counter(found)
        groups = [(name,) if name in count else tuple(name.split("+")) for name in self.columns]
        wanted = [name for group in groups for name in group]
        if twice := [name for name in wanted or found if count[name] > 1]:
            raise UserError(f"{place}: two columns are called {twice[0][:60]!r}")
        if missing := [name for name in wanted if name not in count]:
            raise UserError(f"{place}: no column {missing[0]!r}; found {_shown(found)}")
        graded = self.form == "scored" and found[-1:] and found[-1].replace(".", "", 1).isdecimal()
        text = next((n for n in found if len(n.split()) > _NAME_WORDS), "")
        if not groups and (text := text or (found[-1] if graded else "")):
            raise UserError(
                f"{place}: {text[:60]!r} is no name of a column; for a file without a header "
                f"give them ({self.called('names')})"
            )
        if groups := groups or [(name,) for name in self._usual(found)]:
            return Chosen(self, groups)
        if not found:
            raise UserError(f"{place}: no columns in it; expected {COLUMNS[self.form][2]}")
        raise UserError(
            f"{place}: choose columns ({self.called('columns')}), {COLUMNS[self.form][2]}, of "
            f"{_shown(found)}"
        )

    def _usual(self, found: list[str]) -> list[str]:
        """The columns that names tell; empty where they do not."""
        least = COLUMNS[self.form][0]
        if self.form == "documents":
            texts = found if len(found) == 1 else [name for name in _BODY if name in found]
            title = ["title"] if "title" in found and texts[:1] != ["title"] else []
            return [*title, texts[0]] if texts else []
        if self.form == "corpus":
            known: list[str] = [name for name in ("_id", "title", "text") if name in found]
            return known if {"_id", "text"} <= set(found) else []
        if self.form in _USUAL:
            usual = [next((n for n in names if n in found), "") for names in _USUAL[self.form]]
            by_order = found if self.form == "scored" and len(found) == least else []
            return usual if all(usual) else by_order
        if self.form == "pairs" and _are_triplets(found):
            return found
        if self.form == "pairs" and tuple(found[::-1]) in _ANCHOR_POSITIVE:
            return found[::-1]
        texts = [name for name in found if name not in _NO_TEXT]
        if least == 1 and len(texts) == 1:
            return texts
        return found if len(found) == least and not (least > 1 and _NO_TEXT & set(found)) else []

    def called(self, name: str, value: str = "") -> str:
        """A setting, with a value for it, as messages name it."""
        if self.settings == _OPTIONS:
            name = name.removesuffix("s")
            return f"{_OPTIONS}{name}{' ' * bool(value)}{value} (in Python {name}=)"
        return f"{self.settings}{name}{'=' * bool(value)}{value}"

    @property
    def most_characters(self) -> int:
        """Of a text."""
        return MOST_CHARACTERS if self.form == "documents" else MAX_CHARACTERS


@dataclass(frozen=True)
class Chosen:
    """The columns of a form in one table; each may be several that are joined by a space."""

    wanted: Wanted
    groups: list[tuple[str, ...]]

    @property
    def names(self) -> list[str]:
        """Every column that is read, once."""
        return list(dict.fromkeys(name for group in self.groups for name in group))

    def fields(self, place: str, row: Mapping[str, object]) -> tuple[str, tuple[str, ...]]:
        """Place and text of the chosen columns; a label, a grade or an id may be a number.

        Raises:
            UserError: A value is not text.
        """
        form = self.wanted.form
        last = len(self.groups) - 1 if form in _USUAL else None
        numeric = 0 if form == "corpus" else last
        types = (int, float) if form == "scored" else int
        texts = []
        for position, group in enumerate(self.groups):
            parts = []
            for value in map(row.__getitem__, group):
                if position == numeric and isinstance(value, types):
                    value = str(value)
                if value is not None and not isinstance(value, str):
                    named = f"{'+'.join(group)}: " if len(self.groups) > 1 else ""
                    found = type(value).__name__
                    raise UserError(f"{place}: {named}expected text, found {found}")
                parts.append(value or "")
            text = parts[0] if len(parts) == 1 else " ".join(filter(None, parts))
            texts.append(sound_text(place, text, self.wanted.most_characters))
        return place, tuple(texts)


def _chooses(wanted: Wanted, found: list[str], chosen: Chosen) -> bool:
    """Whether the same columns would be read of a table with these."""
    try:
        return wanted.choose("", found) == chosen
    except UserError:
        return False


def _shown(names: Iterable[str]) -> str:
    """Names of columns for an error; a file of anything may have millions, or one of a megabyte."""
    text = ", ".join(names)
    return text if len(text) <= 300 else f"{text[:300]} …"


# Names by which data sets call the columns of a form; the label is the last.
_USUAL = {
    "nli": (("premise", "sentence1"), ("hypothesis", "sentence2"), ("label", "gold_label")),
    "labelled": (("text", "sentence"), ("label", "group", "id")),
    "scored": (
        ("sentence1", "text1"),
        ("sentence2", "text2"),
        ("grade", "score", "similarity_score", "label"),
    ),
}

# Names by which tables call the text of a document.
_BODY = ("text", "body", "content", "document")

# Of two columns these are hardly one of a pair.
_NO_TEXT = {"id", "idx", "index", "label", "score", "positive", "anchor"}

_ANCHOR_POSITIVE = (("anchor", "positive"), ("sent0", "sent1"), ("query", "positive"))


def _are_triplets(found: list[str]) -> bool:
    """Whether names say that they are anchor, positive, hard negatives, in this order."""
    others = all(re.fullmatch(r"(hard_?)?neg(ative)?_?\d*", name) for name in found[2:])
    return tuple(found[:2]) in _ANCHOR_POSITIVE and others


Fields = Iterator[tuple[str, tuple[str, ...]]]


def read_sentences(
    path: Path,
    column: str | None = None,
    suffix: str | None = None,
    *,
    separator: str | None = None,
    encoding: Encoding = "utf-8",
) -> Iterator[str]:
    """All texts of one file, in order, empty ones too.

    Args:
        path: txt, csv, tsv, jsonl or parquet; all but parquet also with .gz.
        column: Column of a table; needed where there is more than one.
        suffix: Read it as a file that ends in this.
        separator: Between the fields of a csv or tsv file.
        encoding: Of any file but parquet.

    Raises:
        UserError: Missing, undecodable or malformed file, with its line; or an argument that has
            no meaning for it.
    """
    columns = (column,) if column else ()
    wanted = Wanted(columns=columns, separator=separator, encoding=encoding, settings=_OPTIONS)
    source = source_of(path, suffix)
    refuse_unused([source], wanted, str(path), called=wanted.called)
    return (text for _, (text,) in source.read(wanted))


def count_lines(path: Path) -> int | None:
    """Of a file that has a text in each line, as it stands; ``None`` for others."""
    if path.suffix.lower() not in (".txt", ".jsonl") or not path.is_file():
        return None
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))


def source_of(path: Path, suffix: str | None = None) -> Source:
    """One file.

    Args:
        path: txt, csv, tsv, jsonl or parquet; all but parquet also with .gz.
        suffix: Read it as a file that ends in this.

    Raises:
        UserError: It is missing, or of another kind.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    return _File(path, suffix or _suffix(path))


# Settings that only some sources make use of, with what stands for unset.
_SOMETIMES: dict[str, tuple[object, ...]] = {
    "split": ("train",),
    "revision": (None,),
    "names": ([], ()),
    "quotes": (True,),
    "separator": (None,),
    "encoding": ("utf-8",),
}
_OF_TABLES = frozenset({"names", "quotes", "separator", "encoding"})
_OF_FILES = {".csv": _OF_TABLES, ".tsv": _OF_TABLES, ".parquet": frozenset[str]()}


def refuse_unused(
    sources: Sequence[Source],
    wanted: Wanted | DataConfig | OwnTest,
    place: str,
    called: Callable[[str], str],
) -> None:
    """Refuse settings that would change nothing.

    Args:
        sources: All that are read with them.
        wanted: The settings.
        place: Names the sources.
        called: Names a setting.

    Raises:
        UserError: One is set of which no source makes use.
    """
    used = {name for source in sources for name in source.uses}
    for name, unset in _SOMETIMES.items():
        if name not in used and getattr(wanted, name, unset[0]) not in unset:
            raise UserError(f"{called(name)} has no meaning for {place}")


@dataclass(frozen=True)
class _DocumentFiles:
    uses = frozenset({"encoding"})
    paths: tuple[Path, ...]
    links: int = 0
    """Linked folders among them, which are not followed."""

    def identity(self) -> list[object]:
        return [value for path in self.paths for value in _File(path, "").identity()]

    def read(self, wanted: Wanted) -> Fields:
        if wanted.columns:
            raise UserError(f"data.columns: {self.paths[0]} is text, which has no columns")
        for path in self.paths:
            text = sound_text(
                str(path), read_document(path, wanted.encoding), wanted.most_characters
            )
            yield str(path), ("", text) if path.suffix.lower() == ".txt" else plain_text(text)


@dataclass(frozen=True)
class _HubDataset:
    uses = frozenset({"split", "revision"})
    name: str
    split: str
    data: Dataset

    def identity(self) -> list[object]:
        return [self.name, self.split, self.data._fingerprint]

    def read(self, wanted: Wanted) -> Fields:
        chosen = wanted.choose(self.name, self.data.column_names)
        for number, row in enumerate(self.data.select_columns(chosen.names), 1):
            yield chosen.fields(f"{self.name}[{self.split}]:{number}", row)


@dataclass(frozen=True)
class _File:
    path: Path
    suffix: str
    is_remote: bool = False

    @property
    def uses(self) -> frozenset[str]:
        """Those of :data:`_SOMETIMES` that change how it is read."""
        remote = {"revision"} if self.is_remote else frozenset[str]()
        return _OF_FILES.get(self.suffix, frozenset({"encoding"})) | remote

    def identity(self) -> list[object]:
        # Size and time can both stay while the text changes; a gigabyte is hashed in a second.
        with self.path.open("rb") as file:
            packed = self.path.suffix.lower() == ".gz"
            return [self.suffix, packed, hashlib.file_digest(file, "sha256").hexdigest()]

    def read(self, wanted: Wanted) -> Fields:
        if self.suffix == ".parquet":
            yield from self._read_parquet(wanted)
            return
        try:
            with self._open() as file:
                lines = self._lines(file, wanted)
                if self.suffix == ".txt":
                    wanted.choose(str(self.path), ["text"])
                    yield from ((place, (line,)) for place, line in lines)
                elif self.suffix == ".jsonl":
                    yield from self._read_jsonl(lines, wanted)
                else:
                    yield from self._read_csv(lines, wanted)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise UserError(f"{self.path}: broken gzip file: {error}") from error

    def _open(self) -> IO[bytes]:
        if self.path.suffix.lower() == ".gz":
            return gzip.open(self.path, "rb")  # type: ignore[return-value]
        return self.path.open("rb")

    def _lines(self, file: IO[bytes], wanted: Wanted) -> Iterator[tuple[str, str]]:
        number, encoding = 0, wanted.encoding
        # As Latin-1 every byte is a character, and \n, \r\n and \r all end a line.
        characters = io.TextIOWrapper(file, encoding="latin-1", newline=None)
        while line := characters.readline(_LONGEST).encode("latin-1"):
            number += 1
            place = f"{self.path}:{number}"
            try:
                # A line cut by the limit may end inside a character; it is too long anyway.
                cut = "ignore" if len(line) == _LONGEST else "strict"
                signed = encoding == "utf-8" and number == 1  # may begin with a byte order mark
                text = line.decode("utf-8-sig" if signed else encoding, errors=cut)
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{place}: not {encoding.upper()} text (byte {error.start} of the line); "
                    f"{wanted.called('encoding')} names another, such as cp1252"
                ) from error
            yield place, sound_text(place, text).rstrip("\n")

    def _read_jsonl(self, lines: Iterable[tuple[str, str]], wanted: Wanted) -> Fields:
        chosen = None  # by the first row
        first: list[str] = []  # what is chosen from
        harmless = {frozenset[str]()}  # further keys with which the same would be chosen
        for place, line in lines:
            if not line.strip():
                yield place, ("",) * COLUMNS[wanted.form][0]
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{place}: not valid JSON: {error}") from error
            if not isinstance(row, dict):
                raise UserError(f"{place}: expected a JSON object, found {type(row).__name__}")
            if chosen is None:
                texts = [name for name in row if isinstance(row[name], str)]
                one = wanted.form == "sentences" and len(texts) == 1 and not wanted.columns
                first = texts if one else list(row)
                chosen = wanted.choose(place, first)
            if missing := [name for name in chosen.names if name not in row]:
                raise UserError(f"{place}: no column {missing[0]!r}; found {_shown(row)}")
            # Text that only some rows have, such as a title or a hard negative.
            added = frozenset(row) - set(first) if not wanted.columns else frozenset()
            added = frozenset(name for name in added if not one or isinstance(row[name], str))
            if added not in harmless:
                if not _chooses(wanted, [*first, *added], chosen):
                    raise UserError(
                        f"{place}: {min(added)!r} is not {'text ' * one}in the first row; choose "
                        f"columns ({wanted.called('columns')}) that all rows have"
                    )
                harmless.add(added)
            yield chosen.fields(place, row)

    def _read_csv(self, lines: Iterator[tuple[str, str]], wanted: Wanted) -> Fields:
        csv.field_size_limit(MAX_CHARACTERS)
        delimiter = wanted.separator or _SEPARATORS[self.suffix]
        reader = csv.reader(
            (f"{text}\n" for _, text in lines),
            delimiter=delimiter,
            strict=True,
            quoting=csv.QUOTE_MINIMAL if wanted.quotes else csv.QUOTE_NONE,
        )
        start, is_first = 1, True
        try:
            header = list(wanted.names) or next(reader, [])
            if not header:
                return
            try:
                chosen = wanted.choose(f"{self.path}:1", header)
                indexes = {name: header.index(name) for name in chosen.names}
            except UserError:
                _refuse_other_separator(f"{self.path}:1", header, header, wanted)
                raise
            start = reader.line_num + 1  # of a row; its quoted fields may go on over several lines
            for row in reader:
                place, start = f"{self.path}:{start}", reader.line_num + 1
                if is_first or len(row) != len(header):
                    _refuse_other_separator(place, header, row, wanted)
                is_first = False
                if row and len(row) != len(header):
                    what = f"{wanted.called('names')} has" if wanted.names else "the header has"
                    raise UserError(f"{place}: {len(row)} fields, {what} {len(header)}")
                yield chosen.fields(place, {n: row[i] if row else "" for n, i in indexes.items()})
        except csv.Error as error:
            known = wanted.settings != _OPTIONS
            hint = f" (where quotes are part of the text: {wanted.called('quotes', 'false')})"
            raise UserError(
                f"{self.path}:{start}: not valid csv in the row that starts here: {error}"
                f"{hint * known}"
            ) from error

    def _read_parquet(self, wanted: Wanted) -> Fields:
        number = 0
        try:
            with pyarrow.parquet.ParquetFile(self.path) as file:
                chosen = wanted.choose(str(self.path), file.schema_arrow.names)
                for batch in file.iter_batches(_PARQUET_ROWS, columns=chosen.names):
                    for row in batch.to_pylist():
                        number += 1
                        yield chosen.fields(f"{self.path}: row {number}", row)
        except UserError:
            raise
        except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
            raise UserError(
                f"{self.path}: not a sound parquet file: {first_line(error)}"
            ) from error


def _refuse_other_separator(
    place: str, header: Sequence[str], row: Sequence[str], wanted: Wanted
) -> None:
    """Tell a table with another separator from one of a single column.

    Raises:
        UserError: Header (or names) and row are one field each, with as many of a character that
            separates fields in other files.
    """
    if wanted.separator is not None or len(row) != 1 or (len(header) != 1 and not wanted.names):
        return
    if list(header) == list(wanted.columns):  # the user says that it is one column
        return
    for character in ";\t|,":
        count = row[0].count(character)
        if count and count == (len(header) - 1 if wanted.names else header[0].count(character)):
            tab = "'\\t'" if wanted.settings == _OPTIONS else "'\"\\t\"'"  # for a shell, and YAML
            value = tab if character == "\t" else f"'{character}'"
            raise UserError(
                f"{place}: one field, {row[0][:60]!r}, which {character!r} seems to separate; set "
                f"{wanted.called('separator', value)}, or name the column if it is one: "
                f"{wanted.called('columns')}"
            )


def sound_text(place: str, text: str, most: int = MAX_CHARACTERS) -> str:
    """The text, if a tokenizer can take it for text.

    Args:
        place: Starts the error.
        text: Any.
        most: Characters.

    Raises:
        UserError: Too long for a sentence, a NUL character, or half of a surrogate pair.
    """
    if len(text) > most:
        expected = "; expected one sentence a line" if most == MAX_CHARACTERS else ""
        raise UserError(f"{place}: more than {most:,} characters{expected}")
    if "\0" in text:
        raise UserError(f"{place}: NUL character; is this a text file?")
    if not text.isascii() and _SURROGATE.search(text):
        raise UserError(f"{place}: lone surrogate character; is this valid Unicode text?")
    return text


Source = _HubDataset | _File | _DocumentFiles


def linked_folders(sources: Iterable[Source]) -> int:
    """How many links to folders were not followed."""
    return sum(source.links for source in sources if isinstance(source, _DocumentFiles))


def all_sources(config: DataConfig) -> list[Source]:
    """The sources of every entry of ``data.train``.

    Raises:
        UserError: As of :func:`find_sources`, or a setting has no meaning for any of them.
    """
    sources = [found for name in config.train for found in find_sources(name, config)]
    refuse_unused(sources, config, ", ".join(config.train), called="data.{}".format)
    return sources


def find_sources(name: str, config: DataConfig, *, refresh: bool = False) -> Iterator[Source]:
    """The sources that one entry of ``data.train`` stands for.

    ``refresh`` is that of :func:`simcse.hub.snapshots.snapshot`.

    Raises:
        UserError: Nothing matches, or the Hub cannot be reached.
    """
    if name == EMBEDDED_TEXT:
        if config.form not in ("documents", "sentences"):
            raise UserError(f"data.train: {name} are documents; data.form is {config.form}")
        yield _File(_EMBEDDED_FILE, ".jsonl")
        return
    path = Path(name)
    is_document = config.form == "documents" and path.suffix.lower() in DOCUMENT_SUFFIXES
    if path.is_dir() and config.form == "documents":
        files, links = document_files(path)
        if not files:
            raise UserError(
                f"data.train: {name} holds no {', '.join(DOCUMENT_SUFFIXES)}; tables (jsonl, "
                "parquet, csv) are named themselves"
            )
        yield _DocumentFiles(tuple(files), links)
    elif path.is_file() and is_document:
        yield _DocumentFiles((path,))
    elif path.is_file():
        yield _File(path, _suffix(path))
    elif glob.has_magic(name):
        files = _matches(name)
        if is_document:
            yield _DocumentFiles(tuple(files))
        else:
            yield from (_File(file, _suffix(file)) for file in files)
    elif path.is_dir():
        raise UserError(f"data.train: {name} is a folder; name its files, such as {name}/*.txt")
    elif path.exists():
        raise UserError(f"data.train: {name} is a pipe or device; expected a file")
    elif ":" not in name and (
        path.is_absolute() or name.count("/") > 1 or name.endswith("/") or has_data_suffix(path)
    ):
        raise UserError(f"data.train: {name}: no such file or folder")
    else:
        yield from _from_hub(name, config, refresh=refresh)


def _matches(pattern: str) -> list[Path]:
    found = glob.glob(pattern, recursive=True)  # noqa: PTH207 (Path.glob: relative only)
    files = sorted(path for path in map(Path, found) if not path.is_dir())
    if not files:
        raise UserError(f"data.train: no file matches {pattern}")
    if broken := [path for path in files if not path.exists()]:
        raise UserError(f"data.train: {broken[0]}: a link to nothing")
    return files


def is_from_hub(name: str) -> bool:
    """Whether :func:`find_sources` gets an entry of ``data.train``, which it has found, there."""
    return not (name == EMBEDDED_TEXT or Path(name).exists() or glob.has_magic(name))


def _from_hub(name: str, config: DataConfig, *, refresh: bool) -> Iterator[Source]:
    """``user/name`` is a data set, ``user/name:file`` one file of its repository, read as it is."""
    from datasets import load_dataset

    repository, _, file = name.partition(":")
    try:
        folder = snapshot(repository, config.revision, "dataset", file or None, refresh=refresh)
    except UserError as error:
        raise failures.failure(
            f"data.train: {name} is no file here and could not be had from the Hugging Face Hub: "
            f"{error}",
            error,
        ) from error
    if file:
        yield _File(folder / file, _suffix(Path(file)), is_remote=True)
        return
    try:
        data = load_dataset(str(folder), split=config.split)
    except Exception as error:  # every kind of lookup and format error
        raise UserError(f"data.train: {name} cannot be read: {first_line(error)}") from error
    yield _HubDataset(repository, config.split, data)


def has_data_suffix(path: Path) -> bool:
    """Whether a name says how the file is to be read."""
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
