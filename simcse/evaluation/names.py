"""Names of tasks: ours, mteb's, groups of them; and which data bears a benchmark's name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

from simcse.config.settings import MTEB as MTEB
from simcse.errors import UserError

STS = ("STS12", "STS13", "STS14", "STS15", "STS16", "STSB", "SICK-R")
"""The seven tasks whose average the papers report."""
TRANSFER = ("MR", "CR", "SUBJ", "MPQA", "SST2", "TREC", "MRPC")
"""SentEval's transfer tasks, in the order of SimCSE's table."""
GROUPS = {"sts": STS, "transfer": TRANSFER}
"""Names for several tasks at once."""

SIZES = {
    "STS12 MSRpar": 750, "STS12 MSRvid": 750, "STS12 SMTeuroparl": 459,
    "STS12 surprise.OnWN": 750, "STS12 surprise.SMTnews": 399,
    "STS13 FNWN": 189, "STS13 OnWN": 561, "STS13 headlines": 750,
    "STS14 OnWN": 750, "STS14 deft-forum": 450, "STS14 deft-news": 300,
    "STS14 headlines": 750, "STS14 images": 750, "STS14 tweet-news": 750,
    "STS15 answers-forums": 375, "STS15 answers-students": 750, "STS15 belief": 375,
    "STS15 headlines": 750, "STS15 images": 750,
    "STS16 answer-answer": 254, "STS16 headlines": 249, "STS16 plagiarism": 230,
    "STS16 postediting": 244, "STS16 question-question": 209,
    "STS-B train": 5749, "STS-B dev": 1500, "STS-B test": 1379,
    "SICK train": 4500, "SICK trial": 500, "SICK test_annotated": 4927,
    "MR": 10662, "CR": 3775, "SUBJ": 10000, "MPQA": 10606,
    "SST2 train": 67349, "SST2 dev": 872, "SST2 test": 1821,
    "TREC train": 5452, "TREC test": 500, "MRPC train": 4076, "MRPC test": 1725,
}  # fmt: skip
"""Scored pairs, or labelled examples, of every part of a benchmark as it was published."""

MTEB_STS = {f"{MTEB}{'STSBenchmark' if name == 'STSB' else name}": name for name in STS}
"""mteb's name, with the prefix, to the name of the same task here."""


def mteb_name(name: str) -> str:
    """A task of the seven as mteb calls it, with the prefix; its STSB is a Chinese one."""
    return next(key for key, value in MTEB_STS.items() if value == name)


def check_size(part: str, found: int, place: Path) -> None:
    """Make sure that data is all of the benchmark whose name its score will bear.

    Args:
        part: Key of :data:`SIZES`.
        found: Scored pairs or labelled examples in the files.
        place: File or folder that they were read from.

    Raises:
        UserError: They are more or fewer.
    """
    if found != SIZES[part]:
        raise UserError(
            f"{place}: {found:,} scored examples, {part} was published with {SIZES[part]:,}; a "
            "score by a benchmark's name needs all of its data and no other"
        )


def nearest(name: str, names: Iterable[str]) -> str:
    """The end of an error line: the closest valid names, or all of a short list."""
    folded = {other.lower(): other for other in names}
    near = difflib.get_close_matches(name.lower(), folded, n=3, cutoff=0.5)
    if near:
        return f" (did you mean {' or '.join(folded[other] for other in near)}?)"
    return f"; allowed are {', '.join(folded.values())}" if len(folded) < 40 else ""
