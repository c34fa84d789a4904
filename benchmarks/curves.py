"""How speed goes with batch size, length of the texts, size of the encoder and of the corpus.

    python benchmarks/curves.py [TEXT] [--rounds 3] [--steps 6] [--largest 1000000]

Training throughput of both sides as benchmarks/training.py measures it (sentences of mean length a
second; mean pooling, float32, our batches of like length), with one thing varied at a time from
mini-bert, batch 64 and 32 tokens. Texts of more than 32 tokens are joined from one or more
sentences, at random up to the length, for a BERT of mini-bert's size with random weights and 512
positions, batch 16. Encoders beyond mini-bert have random weights. Preparation is that of
benchmarks/startup.py; beyond the text's own sentences it goes on with the same ones, each with a
number behind it. Writes results/curves.json, curves.md and curves.svg beside itself.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
from measure import RESULTS, Measured, quiet, write_results
from startup import MAP, prepare
from training import (
    BATCH,
    PEER,
    WARM,
    Clock,
    Setting,
    add_text,
    first_lines,
    ours,
    peer,
    random_bert,
    write_lines,
)

from simcse.config.settings import EncoderConfig

BATCHES = (16, 32, 64, 128, 256)
LENGTHS = (32, 64, 128, 256, 512)
LONG_BATCH = 16
ENCODERS = {"4 × 256": None, "6 × 384": (6, 384), "12 × 768": (12, 768)}
WORDS_A_TOKEN = 0.7  # of Wikipedia text with the shipped tokenizer, rounded down


def main() -> int:
    """Measure all four curves, print and write them."""
    parser = argparse.ArgumentParser(description="Speed over sizes.")
    add_text(parser)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--largest", type=int, default=1_000_000, help="sentences to prepare")
    parsed = parser.parse_args()
    quiet()
    sentences = first_lines(parsed.text, min(parsed.largest, 500_000))
    steps = parsed.steps + WARM
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        curves = {
            "batch size": over_batches(sentences, work / "batch", steps, parsed.rounds),
            "longest text, tokens": over_lengths(sentences, work / "long", steps, parsed.rounds),
            "encoder, layers × width": over_encoders(
                sentences, work / "encoder", steps, parsed.rounds
            ),
            "sentences prepared": over_corpora(sentences, parsed.largest, parsed.rounds),
        }
    tables = {f"{x}: {at}": ways for x, points in curves.items() for at, ways in points.items()}
    draw(curves)
    write_results("curves", tables, __doc__, PEER, MAP)
    return 0


Points = dict[str, dict[str, Measured]]


def over_batches(sentences: list[str], work: Path, steps: int, rounds: int) -> Points:
    """mini-bert over the batch size."""
    work.mkdir()
    write_lines(sentences[: 2 * steps * max(BATCHES)], work)
    return {
        str(batch): alternate(Setting(EncoderConfig(), work, steps, batch), rounds)
        for batch in BATCHES
    }


def over_lengths(sentences: list[str], work: Path, steps: int, rounds: int) -> Points:
    """A random encoder with 512 positions over the length."""
    name = str(random_bert(work / "encoder", layers=4, width=256, positions=max(LENGTHS)))
    points = {}
    for length in LENGTHS:
        folder = work / str(length)
        folder.mkdir()
        write_lines(joined(sentences, length, 4 * steps * LONG_BATCH), folder)
        setting = Setting(EncoderConfig(name=name), folder, steps, LONG_BATCH, length)
        points[str(length)] = alternate(setting, rounds)
    return points


def over_encoders(sentences: list[str], work: Path, steps: int, rounds: int) -> Points:
    """Batch 64 over the encoder's size."""
    work.mkdir()
    write_lines(sentences[: 4 * steps * BATCH], work)
    points = {}
    for title, size in ENCODERS.items():
        name = "mini-bert" if size is None else str(random_bert(work / title, *size))
        points[title] = alternate(Setting(EncoderConfig(name=name), work, steps), rounds)
    return points


def over_corpora(sentences: list[str], largest: int, rounds: int) -> Points:
    """Text file to token ids over the number of sentences."""
    points: Points = {}
    count = 1000
    while count <= largest:
        copies = (f"{sentence} {i}" for i in itertools.count(1) for sentence in sentences)
        lines = [*sentences[:count], *(next(copies) for _ in range(count - len(sentences)))]
        rates: dict[str, list[float]] = {MAP: [], "ours": []}
        for _ in range(rounds if count <= 100_000 else 1):
            for way, found in rates.items():
                found.append(count / prepare(lines, peer=way == MAP))
        points[f"{count:,}"] = {
            way: Measured("sentences/s", r, higher_is_better=True) for way, r in rates.items()
        }
        print(f"prepared {count:,}", flush=True)
        count *= 10
    return points


def joined(sentences: list[str], length: int, count: int) -> list[str]:
    """Texts of one or more sentences, of up to about ``length`` tokens, all lengths alike."""
    generator = np.random.default_rng(0)
    texts, place = [], 0
    for tokens in generator.integers(8, length + 1, count):
        words: list[str] = []
        while not words or len(words) < WORDS_A_TOKEN * tokens:
            words += sentences[place % len(sentences)].split()
            place += 1
        texts.append(" ".join(words))
    return texts


def alternate(setting: Setting, rounds: int) -> dict[str, Measured]:
    """Sentences a second of both sides."""
    ways: dict[str, Callable[[int], Clock]] = {
        PEER: lambda seed: peer(setting, "float32", seed),
        "ours": lambda seed: ours(setting, "length_grouped", "float32", seed),
    }
    mean = setting.mean_tokens()
    rates: dict[str, list[float]] = {way: [] for way in ways}
    for seed in range(rounds):
        for way, train in ways.items():
            clock = train(seed)
            rates[way].append(clock.sentences(mean) / clock.seconds)
    return {way: Measured("sentences/s", r, higher_is_better=True) for way, r in rates.items()}


def draw(curves: dict[str, Points]) -> None:
    """A panel a curve, both sides in each."""
    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "curves"
    figure, panels = pyplot.subplots(1, len(curves), figsize=(4 * len(curves), 3.2))
    for panel, (title, points) in zip(panels, curves.items(), strict=True):
        for way, marker in zip(next(iter(points.values())), "so", strict=True):
            medians = [ways[way].median for ways in points.values()]
            panel.plot(list(points), medians, marker=marker, label=way)
        panel.set(xlabel=title, ylabel="sentences a second", ylim=(0, None))
        panel.legend()
    figure.tight_layout()
    figure.savefig(RESULTS / "curves.svg", metadata={"Date": None})


if __name__ == "__main__":
    raise SystemExit(main())
