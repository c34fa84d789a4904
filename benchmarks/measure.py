"""What the benchmarks share: repeated measurements as a table, and the machine's own speed."""

from __future__ import annotations

import json
import logging
import statistics
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers
from datasets import disable_progress_bars

from simcse.environment import environment
from simcse.files import write_atomically

RESULTS = Path(__file__).parent / "results"
QUOTING = Path(__file__).parent.parent / "docs" / "performance.md"


@dataclass(frozen=True)
class Measured:
    """One way of doing something, measured in several interleaved rounds."""

    unit: str
    values: list[float]
    extra: dict[str, float] = field(default_factory=dict)
    """Further figures; ``padding`` and names with ``share`` are printed in per cent."""
    higher_is_better: bool = False

    @property
    def median(self) -> float:
        """Median over the rounds."""
        return statistics.median(self.values)

    def ratio(self, peer: Measured) -> float:
        """How many times better than the peer: median of the ratios within each round."""
        pairs = list(zip(self.values, peer.values, strict=True))
        better = [a / b if self.higher_is_better else b / a for a, b in pairs]
        return statistics.median(better)


def markdown(ways: dict[str, Measured], peers: Sequence[str]) -> str:
    """A table; every way against the peer of its precision, else the peer.

    The peer is the first way if it is one of ``peers``; else there are neither ratios nor ranges.
    """
    peer, first = next(iter(ways.items()))
    compared = peer.split(",")[0] in peers
    names = list(dict.fromkeys(name for way in ways.values() for name in way.extra))
    head = ["", f"{first.unit} (median)", *(["range", f"times {peer}"] if compared else []), *names]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, way in ways.items():
        cells = [name, f"{way.median:.4g}"]
        if compared:
            rival = ways[_rival(name, ways, peer)]
            cells += [f"{min(way.values):.4g} to {max(way.values):.4g}", f"{way.ratio(rival):.2f}"]
        cells += [_figure(key, way.extra.get(key)) for key in names]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _rival(name: str, ways: dict[str, Measured], peer: str) -> str:
    """The peer with what stands behind the last comma of a name, if it was measured so."""
    special = f"{peer}, {name.rpartition(', ')[2]}"
    return special if special in ways else peer


def _figure(name: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.1%}" if name == "padding" or "share" in name else f"{value:.3g}"


def write_results(
    name: str, tables: dict[str, dict[str, Measured]], about: str | None, *peers: str
) -> None:
    """Print the tables and write ``results/<name>.json`` and ``results/<name>.md``.

    docs/performance.md quotes the latter; what it quotes is replaced too.
    """
    text = "\n".join(f"**{title}**\n\n{markdown(ways, peers)}" for title, ways in tables.items())
    print(text)
    result = {
        "about": about,
        "tables": {
            title: {
                way: {"unit": m.unit, "values": m.values, "median": m.median, **m.extra}
                for way, m in ways.items()
            }
            for title, ways in tables.items()
        },
        "environment": environment(0, _command()),
    }
    write_atomically(RESULTS / f"{name}.json", json.dumps(result, indent=2) + "\n")
    write_atomically(RESULTS / f"{name}.md", text)
    page = QUOTING.read_text(encoding="utf-8")
    write_atomically(QUOTING, quote(page, name, text))


def _command() -> list[str]:
    """The command line, with files by their names alone."""
    script, *arguments = sys.argv
    return [f"benchmarks/{Path(script).name}", *(Path(word).name for word in arguments)]


def quote(page: str, name: str, text: str) -> str:
    """A page with the block that quotes ``results/<name>.md`` replaced, if it has one."""
    before, begin, after = page.partition(f"<!-- {name}.md -->\n")
    if not begin:
        return page
    return f"{before}{begin}\n{text}\n{after[after.index('<!-- end -->') :]}"


def matmul_peak(seconds: float = 0.3) -> float:
    """Operations a second of a large float32 matrix product, the best of a few."""
    left, right = torch.randn(2, 1536, 1536)
    best, until = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < until:
        started = time.perf_counter()
        left @ right
        best = max(best, 2 * 1536**3 / (time.perf_counter() - started))
    return best


def quiet() -> None:
    """No progress bars or warnings of the libraries."""
    warnings.filterwarnings("ignore")
    disable_progress_bars()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.disable(logging.WARNING)
