"""Names of tasks: the project's, mteb's, and of groups of tasks."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from simcse.config.settings import MTEB as MTEB

STS = ("STS12", "STS13", "STS14", "STS15", "STS16", "STSB", "SICK-R")
"""The seven tasks whose average the papers report."""
TRANSFER = ("MR", "CR", "SUBJ", "MPQA", "SST2", "TREC", "MRPC")
"""SentEval's transfer tasks, in the order of SimCSE's table."""
GROUPS = {"sts": STS, "transfer": TRANSFER}
"""Names for several tasks at once."""

MTEB_STS = {f"{MTEB}{'STSBenchmark' if name == 'STSB' else name}": name for name in STS}
"""mteb's name, with the prefix, to the name of the same task here."""


def mteb_name(name: str) -> str:
    """A task of the seven as mteb calls it, with the prefix; its STSB is a Chinese one."""
    return next(key for key, value in MTEB_STS.items() if value == name)


def nearest(name: str, names: Iterable[str]) -> str:
    """The end of an error line: the closest valid names, or all of a short list."""
    folded = {other.lower(): other for other in names}
    near = difflib.get_close_matches(name.lower(), folded, n=3, cutoff=0.5)
    if near:
        return f" (did you mean {' or '.join(folded[other] for other in near)}?)"
    return f"; allowed are {', '.join(folded.values())}" if len(folded) < 40 else ""
