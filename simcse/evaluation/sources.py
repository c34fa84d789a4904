"""Reads the tasks: STS in SentEval's layout, the embedded pairs, documents."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

import numpy as np

from simcse.config.settings import EMBEDDED_TEXT, TASK_ALIASES, OwnTest, TaskName
from simcse.data.documents import Documents, embedded_documents
from simcse.errors import UserError
from simcse.evaluation.documents import document_task
from simcse.evaluation.lines import parse_lines, read_lines, spaced
from simcse.evaluation.names import GROUPS, STS, check_size, mteb_name, nearest, published_as
from simcse.evaluation.own import own_task
from simcse.evaluation.tasks import GeometryTask, PairTask, Task
from simcse.evaluation.transfer import READERS, load_transfer

PAIRS_FILE = Path(__file__).parent.parent / "assets" / "pairs.tsv"

# Subsets as SentEval scores them; STS13's SMT set is not public (SimCSE, appendix B).
STS_SUBSETS = {
    "STS12": ("MSRpar", "MSRvid", "SMTeuroparl", "surprise.OnWN", "surprise.SMTnews"),
    "STS13": ("FNWN", "OnWN", "headlines"),
    "STS14": ("OnWN", "deft-forum", "deft-news", "headlines", "images", "tweet-news"),
    "STS15": ("answers-forums", "answers-students", "belief", "headlines", "images"),
    "STS16": ("answer-answer", "headlines", "plagiarism", "postediting", "question-question"),
}
SICK_PARTS = {
    "SICK-R": ("test_annotated",),
    "SICK-R (all)": ("train", "trial", "test_annotated"),
}

Row = tuple[str, str, float]
"""Two sentences and their grade."""


def task_names(words: Sequence[str], data: Path | None) -> tuple[list[str], list[str]]:
    """Resolve aliases and groups.

    Args:
        words: Task names, aliases, ``sts`` or ``transfer``.
        data: Folder in SentEval's layout.

    Returns:
        Names to load, and those of a group that the folder does not hold.

    Raises:
        UserError: A group holds nothing here.
    """
    names: list[str] = []
    missing: list[str] = []
    for word in words:
        group = GROUPS.get(word, (TASK_ALIASES.get(word, word),))
        here = [name for name in group if word not in GROUPS or is_here(name, data)]
        if not here:
            raise UserError(
                f"task {word}: none of {', '.join(group)} is in {data}"
                if data
                else f"task {word}: needs a folder in SentEval's layout (--data FOLDER)"
            )
        names += here
        missing += [name for name in group if name not in here]
    return list(dict.fromkeys(names)), list(dict.fromkeys(missing))


def load_task(name: str, data: Path | None, documents: Sequence[Documents] = ()) -> Task:
    """One task by its name, see :data:`simcse.config.settings.TaskName`, or an alias.

    Args:
        name: Task name.
        data: Folder in SentEval's layout; needed for STS and transfer tasks.
        documents: Those of a run; needed for ``documents``, the part of them that is held out.

    Raises:
        UserError: Unknown name, missing folder or file, malformed line.
    """
    name = TASK_ALIASES.get(name, name)
    if name == "pairs":
        return _pair_task("pairs", read_pairs())
    if name == EMBEDDED_TEXT:
        return document_task([Documents(embedded_documents())], "test", name)
    if name == "documents":
        if not documents:
            raise UserError(f"task {name}: needs the config of a run with data.form=documents")
        return document_task(documents, "test")
    if name not in get_args(TaskName):
        raise UserError(f"task {name!r}: unknown{nearest(name, [*get_args(TaskName), *GROUPS])}")
    if data is None:
        raise UserError(
            f"task {name}: needs a folder in SentEval's layout (--data FOLDER)"
            + (f"; {mteb_name(name)} comes from the Hub" if name in STS else "")
        )
    if name in READERS:
        return load_transfer(name, data)
    rows = read_sts(name, data)
    title, own = published_as(name, rows, "graded")
    # mteb's task of that name has 9,927 pairs: all of SICK.
    facts = {"source": f"SentEval, {len(rows):,}"} if name == "SICK-R" else {}
    return _pair_task(title, rows, {**facts, **own})


def read_sts(name: str, data: Path) -> list[Row]:
    """Scored pairs of an STS task: both sentences, as the files have them, and the grade.

    Args:
        name: One of :data:`STS`, ``STSB-dev``, or ``SICK-R (all)`` for train, trial and test.
        data: Folder in SentEval's layout.

    Raises:
        UserError: Missing folder or file, malformed line, more or fewer pairs than were published.
    """
    if name in STS_SUBSETS:
        folder = data / "STS" / f"{name}-en-test"
        return [row for subset in STS_SUBSETS[name] for row in _read_subset(folder, name, subset)]
    if name in SICK_PARTS:
        return _read_sick(data, *SICK_PARTS[name])
    return _read_stsb(data, "dev" if name == "STSB-dev" else "test")


def require_grades(name: str, rows: Sequence[Row]) -> None:
    """Check that there is something to rank.

    Raises:
        UserError: No pairs, or all of one grade.
    """
    if len({grade for _, _, grade in rows}) < 2:
        raise UserError(f"task {name}: no scored pairs in its files, or all of one grade")


def is_here(name: str, data: Path | None) -> bool:
    """Whether the folder holds a task of :data:`~simcse.evaluation.names.GROUPS`."""
    if data is None:
        return False
    if name in READERS:
        return (data / READERS[name][0]).is_dir()
    if name == "SICK-R":  # the folder may hold the training part alone
        return (data / "SICK" / "SICK_test_annotated.txt").is_file()
    return (data / "STS" / ("STSBenchmark" if name == "STSB" else f"{name}-en-test")).is_dir()


def load_dev_task(
    name: str | OwnTest, data: Path | None, documents: Sequence[Documents] = ()
) -> Task:
    """What chooses checkpoints.

    ``pairs``, the dev part of documents or STS-B, or a test on the user's own data.

    Raises:
        UserError: As :func:`load_task`.
    """
    if isinstance(name, OwnTest):
        return own_task(name)
    if name == EMBEDDED_TEXT:
        return document_task([Documents(embedded_documents())], "dev", name)
    if name == "documents" and documents:
        return document_task(documents, "dev")
    return load_task("STSB-dev" if name == "STSB" else name, data)


def load_geometry(data: Path | None, *, dev_only: bool) -> GeometryTask:
    """Alignment and uniformity on STS-B, or on the embedded pairs if STS-B is not available.

    Args:
        data: Folder in SentEval's layout, or ``None``.
        dev_only: Only the dev part (while training) instead of train, dev and test together.

    Raises:
        UserError: A file of STS-B is missing or malformed.
    """
    if data is not None and (data / "STS" / "STSBenchmark").is_dir():
        parts = ("dev",) if dev_only else ("train", "dev", "test")
        rows = _read_stsb(data, *parts)
        if not any(grade > 4 for _, _, grade in rows):
            raise UserError(
                f"{data / 'STS' / 'STSBenchmark'}: no pair graded above 4, so no alignment"
            )
        source, _ = published_as(f"STS-B {'+'.join(parts)}", rows, "graded")
        return GeometryTask(source, *_columns(rows))
    return GeometryTask("embedded pairs", *_columns(read_pairs()))


def read_pairs() -> list[Row]:
    """The graded pairs written for this project: a smoke test, not a benchmark."""
    return _read_table(PAIRS_FILE, (2, 3, 0), header=True)


def _read_subset(folder: Path, task: str, subset: str) -> list[Row]:
    pairs_file, grades_file = folder / f"STS.input.{subset}.txt", folder / f"STS.gs.{subset}.txt"
    pairs, grades = read_lines(pairs_file), read_lines(grades_file)
    if len(pairs) != len(grades):
        raise UserError(
            f"{pairs_file}: {len(pairs)} lines, but {grades_file.name} has {len(grades)}"
        )
    rows = []
    for number, (pair, grade) in enumerate(zip(pairs, grades, strict=True), 1):
        if not grade.strip():
            continue  # unscored
        try:
            value = _grade(grade)
        except ValueError as error:
            raise UserError(f"{grades_file}:{number}: {error}") from error
        try:
            sentence1, sentence2 = pair.split("\t")[:2]
        except ValueError as error:
            raise UserError(
                f"{pairs_file}:{number}: expected two sentences with a tab between"
            ) from error
        if not (sentence1.strip() and sentence2.strip()):
            raise UserError(f"{pairs_file}:{number}: a sentence is empty")
        rows.append((sentence1, sentence2, value))
    check_size(f"{task} {subset}", len(rows), grades_file)
    return rows


def _read_stsb(data: Path, *parts: str) -> list[Row]:
    files = {part: data / "STS" / "STSBenchmark" / f"sts-{part}.csv" for part in parts}
    return _read_parts("STS-B", files, (5, 6, 4))


def _read_sick(data: Path, *parts: str) -> list[Row]:
    files = {part: data / "SICK" / f"SICK_{part}.txt" for part in parts}
    return _read_parts("SICK", files, (1, 2, 3), header=True)


def _read_parts(
    name: str, files: Mapping[str, Path], columns: tuple[int, int, int], *, header: bool = False
) -> list[Row]:
    """Some parts of a benchmark, one after the other, each of the published size."""
    found = []
    for part, file in files.items():
        rows = _read_table(file, columns, header=header)
        check_size(f"{name} {part}", len(rows), file)
        found += rows
    return found


def _read_table(path: Path, columns: tuple[int, int, int], *, header: bool = False) -> list[Row]:
    """Rows of a file in which tabs separate columns: both sentences and the grade."""
    first, second, grade = columns

    def parse(line: str) -> Row:
        fields = line.split("\t")
        if not (fields[first].strip() and fields[second].strip()):
            raise ValueError("a sentence is empty")
        return fields[first], fields[second], _grade(fields[grade])

    return list(parse_lines(path, parse, "a sentence pair with its score", header=header))


def _grade(text: str) -> float:
    try:
        grade = float(text)
    except ValueError:
        grade = math.nan
    if not 0 <= grade <= 5:
        raise ValueError(f"a grade is a number from 0 to 5, got {text[:60]!r}")
    return grade


def _columns(rows: list[Row]) -> tuple[list[str], list[str], np.ndarray]:
    sentence1, sentence2, grades = zip(*rows, strict=True)
    return [*map(spaced, sentence1)], [*map(spaced, sentence2)], np.array(grades)


def _pair_task(name: str, rows: list[Row], facts: Mapping[str, str] | None = None) -> PairTask:
    require_grades(name, rows)
    return PairTask(name, *_columns(rows), facts or {})
