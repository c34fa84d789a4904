"""Real English sentences that every machine already has: the docstrings of installed packages.

The default training text. Sentences are read with :mod:`ast` (nothing is imported or run) from the
standard library and from the distributions this project depends on, so nothing is redistributed
and no network is needed. Modules are split by a hash of their name: a tenth is held out to test
retrieval, a twentieth to choose checkpoints, the rest is training text.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import json
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from simcse.caches import cache_folder, cached
from simcse.errors import UserError

DISTRIBUTION = "simcse-trainer"
HARVEST_VERSION = 2
# Two distributions hold half of all modules, many of them copies of one another.
MODULES_PER_DISTRIBUTION = 600
MIN_WORDS, MAX_WORDS = 5, 60

Split = Literal["train", "dev", "test"]

_LEFT_OUT = {"test", "tests", "testing", "_vendor", "vendor", "_vendored", "site-packages"}
_LEFT_OUT |= {"dist-packages", "lib2to3", "idlelib", "turtledemo"}
_ITEM = re.compile(
    r"^(?:[-*•]|\d+[.)])\s+"  # bullet
    r"|^:(?:param|type|return|returns|rtype|raises)[^:]*:\s*"  # reST field
    r"|^\*{0,2}[`\w.*, -]{1,60}?(?:\s*\([^()]*(?:\([^()]*\)[^()]*)*\))?\s*:\s+(?=[A-Z])"  # argument
)
_MARKUP = (
    (re.compile(r":[a-zA-Z:]+:`(?:[^`<]*<)?[~!]?(?:[\w.]*\.)?([^`>]*)>?`"), r"\1"),  # :class:`~a.B`
    (re.compile(r"`([^`<]+?)\s*<[^`>]*>`_{1,2}"), r"\1"),  # `text <url>`_
    (re.compile(r"\[([^\]]+)\]\([^)]*\)"), r"\1"),  # [text](url)
    (re.compile(r"``?([^`]*)``?_?"), r"\1"),
    (re.compile(r"(\*\*|\*)(?=\S)(.+?)(?<=\S)\1"), r"\2"),
)
_SENTENCE_END = re.compile(
    r"(?<![ (]e\.g\.)(?<![ (]i\.e\.)(?<!etc\.)(?<!vs\.)(?<=[.!?])\s+(?=[A-Z\"'(])"
)
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_WORD = re.compile(r"""^["'(]*[A-Za-z]+(?:[-'/][A-Za-z]+)*[)"',.;:!?]*$""")


@dataclass(frozen=True)
class Docstring:
    """The prose of one docstring: its module's dotted name and its sentences in order."""

    module: str
    sentences: tuple[str, ...]


def split_of(module: str) -> Split:
    """Split a module belongs to, by a hash of its name: 10% test, 5% dev, 85% train."""
    bucket = int.from_bytes(hashlib.sha256(module.encode()).digest()[:4], "big") % 20
    return "test" if bucket < 2 else "dev" if bucket == 2 else "train"


def training_sentences() -> list[str]:
    """Distinct sentences of the training modules, none of which occurs in a held-out module."""
    docstrings = load()
    held_out = {s for d in docstrings if split_of(d.module) != "train" for s in d.sentences}
    train = dict.fromkeys(
        s for d in docstrings if split_of(d.module) == "train" for s in d.sentences
    )
    return [sentence for sentence in train if sentence not in held_out]


def retrieval_pairs(split: Literal["dev", "test"]) -> tuple[list[str], list[str]]:
    """Summary lines of held-out docstrings and, in the same order, the rest of their text.

    Returns:
        Queries and documents of equal number; neither list holds a text twice.
    """
    queries: dict[str, str] = {}
    documents: set[str] = set()
    for docstring in load():
        if split_of(docstring.module) != split or len(docstring.sentences) < 2:
            continue
        summary, document = docstring.sentences[0], " ".join(docstring.sentences[1:5])
        if summary not in queries and document not in documents:
            queries[summary] = document
            documents.add(document)
    return list(queries), list(queries.values())


def fingerprint(sentences: Iterable[str]) -> str:
    """SHA-256 of the sentences, one a line; it varies with the installed versions."""
    digest = hashlib.sha256()
    for sentence in sentences:
        digest.update(sentence.encode() + b"\n")
    return digest.hexdigest()


def load() -> list[Docstring]:
    """All docstrings with at least one sentence, in a fixed order; read once per environment.

    Raises:
        UserError: This project is not installed, so its dependencies cannot be listed.
    """
    return _load(cache_folder())


@functools.cache
def _load(folder: Path) -> list[Docstring]:
    sources = {name: (version, files) for name, version, files in _distributions()}
    key = json.dumps(
        [HARVEST_VERSION, sys.version, sorted((n, v) for n, (v, _) in sources.items())]
    )
    path = folder / f"docstrings-{hashlib.sha256(key.encode()).hexdigest()[:16]}.jsonl"

    def make(temporary: Path) -> dict[str, Any]:
        with temporary.open("w", encoding="utf-8") as file:
            for name in sorted(sources):
                for docstring in harvest(sources[name][1]):
                    file.write(json.dumps([docstring.module, docstring.sentences]) + "\n")
        return {}

    cached(path, make)
    with path.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [Docstring(module, tuple(sentences)) for module, sentences in rows]


def harvest(files: dict[str, Path]) -> Iterator[Docstring]:
    """Read the docstrings of Python files (module name -> path), in order of module name."""
    chosen = sorted(files, key=lambda name: hashlib.sha256(name.encode()).digest())
    for module in sorted(chosen[:MODULES_PER_DISTRIBUTION]):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # other people's invalid escape sequences
                tree = ast.parse(files[module].read_bytes())
        except (OSError, SyntaxError, ValueError):
            continue  # an unreadable module of somebody else's package is no reason to stop
        for node in ast.walk(tree):
            if not isinstance(node, _DOCUMENTED):
                continue
            if sentences := prose(ast.get_docstring(node) or ""):
                yield Docstring(module, tuple(sentences))


def prose(docstring: str) -> list[str]:
    """The well-formed English sentences of a docstring, without code, markup and section titles."""
    sentences: dict[str, None] = {}
    for paragraph in _paragraphs(docstring):
        for pattern, replacement in _MARKUP:
            paragraph = pattern.sub(replacement, paragraph)
        for sentence in _SENTENCE_END.split(paragraph):
            if _is_english(sentence):
                sentences[sentence] = None
    return list(sentences)


def _paragraphs(docstring: str) -> Iterator[str]:
    lines: list[str] = []
    indent = 0
    skip_below: int | None = None  # inside a literal block: skip lines indented deeper than this
    fenced = hanging = False
    for line in docstring.expandtabs().splitlines():
        text = line.strip()
        depth = len(line) - len(line.lstrip())
        if text.startswith("```"):
            fenced, text = not fenced, ""
        if fenced:
            continue
        if skip_below is not None and text:
            if depth > skip_below:
                continue
            skip_below = None
        item = _ITEM.match(text)
        # A deeper line goes on with a list item; elsewhere it is the text below a heading.
        starts_anew = item is not None or depth < indent or (depth > indent and not hanging)
        starts_anew = starts_anew or text.startswith((".. ", ">>>", "..."))
        if lines and (not text or starts_anew or text.endswith(":")):
            yield " ".join(lines)
            lines = []
        is_title = text.endswith(":") and text.count(" ") < 3 and not text.endswith("::")
        if is_title or text.startswith((">>>", "... ")) or not text.strip("-=~^*+# "):
            lines = []  # an underline also drops the title above it
            indent, hanging = depth, False
            continue
        if text.startswith(".. "):
            if text.endswith("::") and not text.startswith((".. note", ".. warning")):
                skip_below = depth
            continue
        if text.endswith("::"):
            skip_below = depth
        hanging = item is not None or (hanging and not starts_anew)
        lines.append(text[item.end() :] if item else text)
        indent = depth
    if lines:
        yield " ".join(lines)


def _is_english(sentence: str) -> bool:
    words = sentence.split()
    if (
        not MIN_WORDS <= len(words) <= MAX_WORDS
        or not sentence[0].isupper()
        or sentence[-1] not in ".!?"
    ):
        return False
    return "://" not in sentence and sum(map(bool, map(_WORD.match, words))) >= 0.85 * len(words)


def _distributions() -> Iterator[tuple[str, str, dict[str, Path]]]:
    """Name, version and modules of the standard library and of every required distribution."""
    stdlib = Path(sysconfig.get_path("stdlib"))
    yield (
        "python",
        sys.version.split()[0],
        _modules(stdlib, (p.relative_to(stdlib) for p in stdlib.rglob("*.py"))),
    )
    for name, distribution in sorted(_required(DISTRIBUTION).items()):
        root = Path(str(distribution.locate_file("")))
        yield (
            name,
            distribution.version,
            _modules(root, map(Path, map(str, distribution.files or []))),
        )


def _required(root: str) -> dict[str, importlib.metadata.Distribution]:
    """Installed distributions that ``root`` needs, extras left out, itself left out."""
    found: dict[str, importlib.metadata.Distribution] = {}
    queue = [root]
    while queue:
        name = queue.pop()
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError as error:
            if name == root:
                raise UserError(
                    f"data.train=docstrings: the distribution {root} is not installed, so its "
                    "dependencies are unknown; install it with: pip install -e ."
                ) from error
            continue
        if name != root:
            found[name] = distribution
        for requirement in map(Requirement, distribution.requires or []):
            needed = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            if needed and (key := canonicalize_name(requirement.name)) not in found and key != root:
                queue.append(key)
    return found


def _modules(root: Path, files: Iterable[Path]) -> dict[str, Path]:
    modules = {}
    for file in files:
        if file.suffix == ".py" and not _LEFT_OUT & set(file.parts) and ".." not in file.parts:
            parts = file.with_suffix("").parts
            modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = root / file
    return modules
