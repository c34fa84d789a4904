"""Documents: read, split into sentences, and a share of them held out, near-duplicates together.

Which side a document is on depends on its content alone: the same document is held out whatever
its file is called, whatever lies beside it (near-duplicates apart) and whatever the seed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from datasketch import MinHash, MinHashLSH
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sentencex import segment

from simcse.caches import cache_folder, cached
from simcse.config.settings import EMBEDDED_TEXT, Config, DataConfig
from simcse.data.readers import Source, Wanted, all_sources
from simcse.errors import UserError
from simcse.terminal import counting

Side = Literal["train", "dev", "test"]
HELD_OUT: tuple[Side, ...] = ("dev", "test")
SIDES: tuple[Side, ...] = ("train", *HELD_OUT)
MOST_HELD_OUT = 5_000
"""Documents of a side that are scored, those with the lowest hashes."""
_VERSION = 1
# Two documents are near-duplicates if they share most of their runs of five words.
_SHINGLE, _SIMILAR, _PERMUTATIONS = 5, 0.7, 64
_MOST_SHINGLES = 10_000  # of a document, from its beginning
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Document:
    """A text with its title, which may be empty."""

    place: str
    title: str
    text: str

    @property
    def key(self) -> int:
        """64 bits of a hash of its words, whatever stands between them."""
        words = " ".join(_words(self))
        return int.from_bytes(hashlib.blake2b(words.encode(), digest_size=8).digest(), "big")


def embedded_documents(held_out: float = 0.1) -> DataConfig:
    """The documents that come with the package, as data of their own."""
    return DataConfig(train=[EMBEDDED_TEXT], form="documents", held_out=held_out)


def read_documents(
    sources: Iterable[Source], config: DataConfig, skipped: Counter[str]
) -> Iterator[Document]:
    """All documents that have text; the others are counted in ``skipped``.

    Raises:
        UserError: Unreadable or malformed input, with its place.
    """
    for source in sources:
        for place, fields in source.read(Wanted.of(config)):
            title, text = fields if len(fields) > 1 else ("", *fields)
            if text.strip():
                yield Document(place, " ".join(title.split()), text)
            elif config.incomplete == "refuse":
                raise UserError(f"{place}: empty text; data.incomplete=skip leaves it out")
            else:
                skipped["without text (skipped)"] += 1


def sentences(text: str, language: str) -> list[str]:
    """The sentences of a text, each on one line; what has no letter or digit is left out."""
    found = (" ".join(sentence.split()) for sentence in segment(language, text))
    return [sentence for sentence in found if _WORD.search(sentence)]


def passages(document: Document, config: DataConfig) -> Iterator[tuple[str, ...]]:
    """Title and sentences of each passage: at most ``data.passage`` sentences, cut evenly."""
    whole = sentences(document.text, config.language)
    parts = -(-len(whole) // config.passage) or 1
    for part in np.array_split(np.arange(len(whole)), parts):
        if len(part):
            yield (document.title, *(whole[i] for i in part))


def query_and_rest(document: Document, language: str) -> tuple[str, str] | None:
    """What searches and what is to be found; ``None`` where there is one sentence only."""
    found = sentences(document.text, language)
    query, *rest = [document.title, *found] if document.title else found or [""]
    return (query, " ".join(rest)) if rest else None


class Documents:
    """The documents of a config, each on its side.

    Args:
        config: Where they are, with ``form: documents``.

    Raises:
        UserError: Unreadable or malformed input, with its place.
    """

    def __init__(self, config: DataConfig) -> None:
        self.config = config
        self.sources = all_sources(config)
        parts = [
            _VERSION,
            [source.identity() for source in self.sources],
            [asdict(Wanted.of(config)), config.held_out, config.incomplete],
        ]
        key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]
        folder = Path(config.cache) if config.cache else cache_folder() / "documents"
        path = folder / f"{key}.npy"
        counts = cached(path, self._split)
        self.skipped: dict[str, int] = counts["skipped"]
        self.near_duplicates: int = counts["near_duplicates"]
        """Documents that are held out, or not, together with another one."""
        table = np.load(path)  # (documents, 2)
        if len(table) == 1:
            raise UserError(
                f"data.train: {', '.join(config.train)} is one document; for one sentence a line "
                "set data.form=sentences, else name the folder or the files of several documents"
            )
        self.keys, self.sides = table[:, 0], table[:, 1].astype(np.int64)
        if len(np.unique(self.keys)) == 1:
            raise UserError(
                f"data.train: all {len(table):,} documents of {', '.join(config.train)} have the "
                "same words; name different ones"
            )

    @classmethod
    def of(cls, config: Config) -> list[Documents]:
        """Those of a run: of each data set that is documents."""
        return [cls(data) for data in config.sets if data.form == "documents"]

    def on(self, side: Side) -> Iterator[Document]:
        """The documents of a side, read again.

        Raises:
            UserError: They are no longer those that were split.
        """
        wanted, number = SIDES.index(side), 0
        documents = read_documents(self.sources, self.config, Counter())
        for number, document in enumerate(documents, 1):
            if number > len(self.keys) or document.key != self.keys[number - 1]:
                raise UserError(f"{document.place}: the text has changed while it was read")
            if self.sides[number - 1] == wanted:
                yield document
        if number != len(self.keys):
            raise UserError("data.train: the text has changed while it was read")

    def held_out(self, side: Side) -> list[Document]:
        """The documents of a side, at most :data:`MOST_HELD_OUT`, each content once."""
        keys = np.unique(self.keys[self.sides == SIDES.index(side)])[:MOST_HELD_OUT].tolist()
        wanted = set(keys)
        found: dict[int, Document] = {}
        for document in self.on(side):
            if document.key in wanted:
                found.setdefault(document.key, document)
        return [found[key] for key in keys]

    def counts(self) -> dict[str, int]:
        """How many documents there are, and where they are."""
        count = Counter(self.sides.tolist())
        return {
            "documents": len(self.sides),
            "held out for dev": count[1],
            "held out for test": count[2],
            "near-duplicates": self.near_duplicates,
            **self.skipped,
        }

    def _split(self, path: Path) -> dict[str, Any]:
        keys: list[int] = []
        pairs: list[tuple[int, int]] = []
        index = MinHashLSH(threshold=_SIMILAR, num_perm=_PERMUTATIONS)
        first: dict[int, int] = {}
        skipped: Counter[str] = Counter()
        documents = read_documents(self.sources, self.config, skipped)
        for number, document in enumerate(counting(documents, "comparing", "documents")):
            key = document.key
            keys.append(key)
            if key in first:
                pairs.append((first[key], number))
                continue
            first[key] = number
            sketch = MinHash(num_perm=_PERMUTATIONS)
            sketch.update_batch(_shingles(document))
            pairs += [(int(other), number) for other in index.query(sketch)]
            index.insert(number, sketch)
        sides, together = _sides(keys, pairs, self.config.held_out)
        with path.open("wb") as file:
            np.save(file, np.stack([np.array(keys, dtype=np.uint64), sides], axis=1))
        return {"near_duplicates": together, "skipped": skipped}


def _sides(
    keys: Sequence[int], pairs: Sequence[tuple[int, int]], share: float
) -> tuple[np.ndarray, int]:
    """Side of each document, uint64, and how many are in a group with another one.

    A group is where the lowest of its hashes is: below ``share`` of all hashes it is held out, the
    lower half of that for dev.
    """
    size = len(keys)
    links = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(links.shape[1]), links), shape=(size, size))
    count, group = connected_components(graph, directed=False)
    lowest = np.full(count, np.iinfo(np.uint64).max, dtype=np.uint64)
    np.minimum.at(lowest, group, np.array(keys, dtype=np.uint64))
    place = lowest.astype(np.float64)[group] / 2.0**64
    sides = np.where(place < share / 2, 1, np.where(place < share, 2, 0)).astype(np.uint64)
    members = np.bincount(group, minlength=count)
    return sides, int(members[members > 1].sum())


def _words(document: Document) -> list[str]:
    return _WORD.findall(f"{document.title} {document.text}".casefold())


def _shingles(document: Document) -> list[bytes]:
    words = _words(document)[: _MOST_SHINGLES + _SHINGLE - 1]
    runs = (" ".join(words[i : i + _SHINGLE]) for i in range(max(1, len(words) - _SHINGLE + 1)))
    return [run.encode() for run in runs]
