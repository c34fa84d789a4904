"""Tests on the user's own data: graded or labelled pairs, retrieval in BEIR's layout, labels."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from simcse.config.reading import problems
from simcse.config.settings import OwnTest, own_test_from_text
from simcse.data.readers import Wanted, refuse_unused, source_of
from simcse.errors import UserError
from simcse.evaluation.classification import FOLDS, LabelledTask, PairClassificationTask
from simcse.evaluation.ranking import Judgements
from simcse.evaluation.tasks import PairTask, RetrievalTask, Task

LAYOUT = "a folder in BEIR's layout: corpus.jsonl, queries.jsonl, qrels.tsv or qrels/test.tsv"
_SAME = {"1": 1, "1.0": 1, "true": 1, "0": 0, "0.0": 0, "false": 0}
_QRELS = ("query-id", "corpus-id", "score")

Facts = dict[str, str]


def own_test(value: str | Mapping[str, Any] | OwnTest) -> str | OwnTest:
    """A test of the user's own from its short form or its settings; any other name as it is.

    Raises:
        UserError: The settings are not those of a test.
    """
    entry = own_test_from_text(value)
    if not isinstance(entry, Mapping):
        return value if isinstance(value, OwnTest) else str(value)
    try:
        return OwnTest.model_validate(dict(entry))
    except ValidationError as error:
        raise UserError(f"tasks: {'; '.join(problems(error, OwnTest))}") from error


def own_task(test: OwnTest) -> Task:
    """Read a test.

    Raises:
        UserError: A file is missing or malformed, with its line; there is nothing to score; the
            name is that of a task of mteb.
    """
    if test.name is not None:
        _check_name(test.name)
    path = Path(test.file)
    facts: Facts = {"own": test.kind}
    if test.kind == "retrieval":
        return _retrieval(test, path, facts)
    facts["dataset"] = _digest(path)
    refuse_unused([source_of(path)], test, str(path), "the test's {}".format)
    rows = list(_rows(path, _wanted(test)))
    if test.kind == "labelled":
        return _labelled(test, path, rows, facts)
    first, second = ([fields[side] for _, fields in rows] for side in (0, 1))
    read = _grade if test.kind == "graded" else _is_same
    values = np.array([read(place, fields[2]) for place, fields in rows])
    if len(set(values.tolist())) == 1:
        what = "grade" if test.kind == "graded" else "label"
        raise UserError(
            f"{path}: all pairs have the {what} {rows[0][1][2]}; there is nothing to tell"
        )
    if test.kind == "graded":
        return PairTask(test.title, first, second, values, facts)
    return PairClassificationTask(test.title, first, second, values, facts)


def _labelled(
    test: OwnTest, path: Path, rows: list[tuple[str, tuple[str, ...]]], facts: Facts
) -> Task:
    labels = [fields[1] for _, fields in rows]
    counts = Counter(labels)
    if len(counts) == 1:
        raise UserError(f"{path}: all texts have the label {labels[0]!r}; expected two or more")
    label, fewest = min(counts.items(), key=lambda item: item[1])
    if fewest < FOLDS:
        raise UserError(
            f"{path}: too few texts with the label {label!r} ({fewest}); {FOLDS}-fold "
            f"cross-validation needs {FOLDS} of each"
        )
    return LabelledTask(test.title, [fields[0] for _, fields in rows], labels, facts)


def _retrieval(test: OwnTest, folder: Path, facts: Facts) -> Task:
    """Queries without a relevant document are left out, as they have no rank."""
    corpus, queries = folder / "corpus.jsonl", folder / "queries.jsonl"
    qrels = folder / "qrels.tsv"
    other = folder / "qrels" / "test.tsv"
    if qrels.is_file() and other.is_file():
        raise UserError(f"{folder}: has both {qrels.name} and qrels/{other.name}; remove one")
    qrels = qrels if qrels.is_file() else other
    for path in (folder, corpus, queries, qrels):
        if not (path.is_dir() if path == folder else path.is_file()):
            kind = "folder" if path == folder else "file"
            raise UserError(f"{path}: no such {kind}; retrieval takes {LAYOUT}")
    refuse_unused([source_of(corpus)], test, str(folder), "the test's {}".format)
    facts["dataset"] = _digest(corpus, queries, qrels)
    documents, places = _texts_by_id(corpus, test)
    asked, numbers = _texts_by_id(queries, test)
    judged: list[dict[int, int]] = [{} for _ in asked]
    wanted = Wanted("scored", _QRELS, quotes=False, encoding=test.encoding, settings="the test's ")
    for place, (query, document, grade) in _rows(qrels, wanted):
        if query not in numbers:
            raise UserError(f"{place}: query-id {query[:60]!r} is not in {queries.name}")
        if document not in places:
            raise UserError(f"{place}: corpus-id {document[:60]!r} is not in {corpus.name}")
        try:
            value = int(grade)
        except ValueError:
            raise UserError(f"{place}: a score is a whole number, got {grade[:60]!r}") from None
        if value > 0:
            judged[numbers[query]][places[document]] = value
    used = [number for number, found in enumerate(judged) if found]
    if not used:
        raise UserError(f"{qrels}: no query has a document with a score above 0")
    relevant: list[Judgements] = [judged[number] for number in used]
    return RetrievalTask(test.title, [asked[number] for number in used], documents, relevant, facts)


def _texts_by_id(path: Path, test: OwnTest) -> tuple[list[str], dict[str, int]]:
    """Texts, with the title before them where there is one, and the position of each id."""
    texts: list[str] = []
    positions: dict[str, int] = {}
    wanted = Wanted("corpus", encoding=test.encoding, settings="the test's ")
    for place, (name, *parts) in source_of(path).read(wanted):
        text = " ".join(part.strip() for part in parts if part.strip())
        if not name and not text:
            continue  # an empty line
        if not name or not text:
            raise UserError(f"{place}: {'text' if name else '_id'} is empty")
        if positions.setdefault(name, len(texts)) != len(texts):
            raise UserError(f"{place}: _id {name[:60]!r} is there twice")
        texts.append(text)
    if not texts:
        raise UserError(f"{path}: empty")
    return texts, positions


def _wanted(test: OwnTest) -> Wanted:
    return Wanted(
        test.form,
        tuple(test.columns),
        tuple(test.names),
        test.quotes,
        test.separator,
        test.encoding,
        "the test's ",
    )


def _rows(path: Path, wanted: Wanted) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Rows that are not empty.

    Raises:
        UserError: A row is empty in part, or there is none.
    """
    is_empty = True
    for place, fields in source_of(path).read(wanted):
        stripped = tuple(field.strip() for field in fields)
        if any(stripped):
            if not all(stripped):
                raise UserError(f"{place}: field {stripped.index('') + 1} of the row is empty")
            is_empty = False
            yield place, stripped
    if is_empty:
        raise UserError(f"{path}: empty")


def _grade(place: str, text: str) -> float:
    try:
        grade = float(text)
    except ValueError:
        grade = math.nan
    if not math.isfinite(grade):
        raise UserError(f"{place}: a grade is a number, got {text[:60]!r}")
    return grade


def _is_same(place: str, text: str) -> int:
    if text.lower() not in _SAME:
        raise UserError(f"{place}: a label is 0 or 1, true or false, got {text[:60]!r}")
    return _SAME[text.lower()]


def _digest(*paths: Path) -> str:
    """SHA-256 of the data, by which scores on other data of the same name are told apart."""
    parts = [source_of(path).identity() for path in paths]
    return f"own data, sha256 {hashlib.sha256(json.dumps(parts).encode()).hexdigest()}"


def _check_name(name: str) -> None:
    from simcse.evaluation.mteb_tasks import known_names  # takes seconds to import

    if name.lower() in map(str.lower, known_names()):
        raise UserError(f"name: {name} is the name of a task of mteb; choose one of its own")
