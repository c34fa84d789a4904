"""Reads the tasks: STS in SentEval's layout, the embedded pairs, the docstrings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import get_args

import numpy as np

from simcse import docstrings
from simcse.config import TASK_ALIASES, TaskName
from simcse.errors import UserError
from simcse.evaluation.tasks import GeometryTask, PairTask, RetrievalTask, Task

PAIRS_FILE = Path(__file__).parent.parent / "assets" / "pairs.tsv"

# Subsets as SentEval scores them; STS13's SMT set is not public (SimCSE, appendix B).
STS_SUBSETS = {
    "STS12": ("MSRpar", "MSRvid", "SMTeuroparl", "surprise.OnWN", "surprise.SMTnews"),
    "STS13": ("FNWN", "OnWN", "headlines"),
    "STS14": ("OnWN", "deft-forum", "deft-news", "headlines", "images", "tweet-news"),
    "STS15": ("answers-forums", "answers-students", "belief", "headlines", "images"),
    "STS16": ("answer-answer", "headlines", "plagiarism", "postediting", "question-question"),
}

Row = tuple[str, str, float]


def load_task(name: str, data: Path | None) -> Task:
    """One task by its name, see :data:`simcse.config.TaskName`, or an alias.

    Args:
        name: Task name.
        data: Folder in SentEval's layout; not needed for ``pairs`` and ``docstrings``.

    Raises:
        UserError: Unknown name, missing folder or file, malformed line.
    """
    name = TASK_ALIASES.get(name, name)
    if name == "pairs":
        return _pair_task("pairs", read_pairs())
    if name == "docstrings":
        return RetrievalTask("docstrings", *docstrings.retrieval_pairs("test"))
    if name not in get_args(TaskName):
        raise UserError(f"task {name!r}: unknown; allowed are {', '.join(get_args(TaskName))}")
    if data is None:
        raise UserError(f"task {name}: needs a folder in SentEval's layout (--data FOLDER)")
    if name in STS_SUBSETS:
        return _pair_task(
            name, list(_read_sts(data / "STS" / f"{name}-en-test", STS_SUBSETS[name]))
        )
    if name == "SICK-R":
        return _pair_task(name, list(_read_sick(data / "SICK" / "SICK_test_annotated.txt")))
    return _pair_task(name, list(_read_stsb(data, "dev" if name == "STSB-dev" else "test")))


def load_dev_task(name: str, data: Path | None) -> Task:
    """The task that chooses checkpoints: ``pairs``, or the dev part of docstrings or STS-B.

    Raises:
        UserError: As :func:`load_task`.
    """
    if name == "docstrings":
        return RetrievalTask("docstrings-dev", *docstrings.retrieval_pairs("dev"))
    return load_task("STSB-dev" if name == "STSB" else name, data)


def load_geometry(data: Path | None, *, dev_only: bool) -> GeometryTask:
    """Alignment and uniformity on STS-B, or on the embedded pairs where STS-B is not at hand.

    Args:
        data: Folder in SentEval's layout, or ``None``.
        dev_only: Only the dev part (while training) instead of train, dev and test together.

    Raises:
        UserError: A file of STS-B is missing or malformed.
    """
    if data is not None and (data / "STS" / "STSBenchmark").is_dir():
        parts = ("dev",) if dev_only else ("train", "dev", "test")
        rows = [row for part in parts for row in _read_stsb(data, part)]
        return GeometryTask(f"STS-B {'+'.join(parts)}", *_columns(rows))
    return GeometryTask("embedded pairs", *_columns(read_pairs()))


def read_pairs() -> list[Row]:
    """The graded pairs written for this project: a smoke test, not a benchmark."""

    def parse(fields: list[str]) -> Row:
        score, _, sentence1, sentence2 = fields
        return sentence1, sentence2, float(score)

    return list(_parse(PAIRS_FILE, parse, header=True))


def _read_sts(folder: Path, subsets: Sequence[str]) -> Iterator[Row]:
    for subset in subsets:
        pairs_file, grades_file = (
            folder / f"STS.input.{subset}.txt",
            folder / f"STS.gs.{subset}.txt",
        )
        pairs, grades = _lines(pairs_file), _lines(grades_file)
        if len(pairs) != len(grades):
            raise UserError(
                f"{pairs_file}: {len(pairs)} lines, but {grades_file.name} has {len(grades)}"
            )
        for number, (pair, grade) in enumerate(zip(pairs, grades, strict=True), 1):
            if not grade.strip():
                continue  # unscored
            try:
                sentence1, sentence2 = pair.split("\t")[:2]
                yield sentence1, sentence2, float(grade)
            except ValueError as error:
                raise UserError(
                    f"{pairs_file}:{number}: expected two sentences with a tab between and a "
                    f"number in {grades_file.name}"
                ) from error


def _read_stsb(data: Path, part: str) -> Iterator[Row]:
    def parse(fields: list[str]) -> Row:  # genre, file, year, id, score, s1, s2, and sometimes more
        return fields[5], fields[6], float(fields[4])

    return _parse(data / "STS" / "STSBenchmark" / f"sts-{part}.csv", parse, header=False)


def _read_sick(path: Path) -> Iterator[Row]:
    def parse(fields: list[str]) -> Row:  # pair_ID, sentence_A, sentence_B, relatedness_score, …
        return fields[1], fields[2], float(fields[3])

    return _parse(path, parse, header=True)


def _parse(path: Path, parse: Callable[[list[str]], Row], *, header: bool) -> Iterator[Row]:
    for number, line in enumerate(_lines(path), 1):
        if header and number == 1:
            continue
        try:
            yield parse(line.split("\t"))
        except (ValueError, IndexError) as error:
            raise UserError(
                f"{path}:{number}: not a sentence pair with its score: {line[:60]!r}"
            ) from error


def _lines(path: Path) -> list[str]:
    try:
        # Split on \n alone: str.splitlines would also break at rarer separators inside a sentence.
        return (
            path.read_bytes().decode("utf-8").removesuffix("\n").replace("\r\n", "\n").split("\n")
        )
    except OSError as error:
        raise UserError(f"{path}: {error.strerror} (SentEval's layout is expected)") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start})") from error


def _columns(rows: list[Row]) -> tuple[list[str], list[str], np.ndarray]:
    sentence1, sentence2, grades = zip(*rows, strict=True)
    return list(sentence1), list(sentence2), np.array(grades)


def _pair_task(name: str, rows: list[Row]) -> PairTask:
    if not rows:
        raise UserError(f"task {name}: no scored pairs in its files")
    return PairTask(name, *_columns(rows))
