"""Names of tasks: ours, mteb's, groups of them; and which data bears a benchmark's name."""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from simcse.config.settings import MTEB as MTEB
from simcse.config.settings import OwnKind
from simcse.errors import UserError

logger = logging.getLogger("simcse")

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

CONTENTS = {
    "STS12": "377744a83da24b59b09df7d9e0cf78cf3733c94514286c4034bc6cd049e51474",
    "STS13": "0c8b40f76805e54a80c28dfa00046c3769e3320ec00ac2fd87e42da026e8b0bd",
    "STSB": "5a7204084a27bffaee83adad03eac37fd54019fb9e933ed84753501dbf690566",
    "STSB-dev": "db3358c08546a1ddaf2c98bf0c55569df40530018451e9aa635a5c53413d7850",
    "STS-B dev": "db3358c08546a1ddaf2c98bf0c55569df40530018451e9aa635a5c53413d7850",
    "STS-B train+dev+test": "3bf1b45911d90e8e749a2842c4d22a4ad90398e16869bbaa56b4ff75d1c8cd00",
    "MR": "1bf02a0404734159c06ebe7ea8fa4e13cd1388880dff83ba325bf9fdb1f6f6a3",
    "SUBJ": "ed9edc53dea79dad6ff01c016f889b1be5a5d6b63069b27e99bf67bc295fdb96",
    "TREC": "455c985658136e4e1f164e8edad05980c468817f648a322772e40325b32b14ea",
    "MRPC": "5850e79629a08b31bb5e245f4fb041750d3acb6ed24269512c8a64e6b585f555",
}
"""SHA-256 of sentences and labels as they were published, where the project had the files."""

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


def published_as(
    name: str, rows: Sequence[Sequence[object]], kind: OwnKind
) -> tuple[str, dict[str, str]]:
    """What scores on data in a benchmark's place are called, and facts to be kept with them.

    Args:
        name: Of the benchmark.
        rows: Sentences and grade or label of every example; the space between words does not count.
        kind: What the data would be as a test of the user's own.

    Returns:
        The benchmark's name and no facts, unless the data are known to be others: a name that says
        so and the facts of a test on the user's own data, which keep its scores out of
        ``model-index``. A warning says so too.
    """
    plain = [[" ".join(v.split()) if isinstance(v, str) else v for v in row] for row in rows]
    digest = hashlib.sha256(json.dumps(plain).encode()).hexdigest()
    if CONTENTS.get(name, digest) == digest:
        return name, {}
    logger.warning("task %s: not the data that was published; scored as own data", name)
    return f"{name} (own data)", {"own": kind, "dataset": f"own data, sha256 {digest}"}


def nearest(name: str, names: Iterable[str]) -> str:
    """The end of an error line: the closest valid names, or all of a short list."""
    folded = {other.lower(): other for other in names}
    near = difflib.get_close_matches(name.lower(), folded, n=3, cutoff=0.5)
    if near:
        return f" (did you mean {' or '.join(folded[other] for other in near)}?)"
    return f"; allowed are {', '.join(folded.values())}" if len(folded) < 40 else ""
