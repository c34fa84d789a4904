"""Random against length-grouped batches, and float32 against bfloat16: quality over five seeds.

    python docs/studies/length.py WIKI.txt SENTEVAL

trains configs/unsup_wiki_mini.yaml with seeds 0 to 4 three ways, below outputs/studies/length/, and
writes to length.md beside this file what `simcse compare` prints, and how much the similarity that
each model gives a pair goes with the difference of its two lengths. Started again it goes on where
it stopped.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr
from seeds import simcse
from transformers import AutoTokenizer

from simcse.encoders.encoder import source_of
from simcse.evaluation.sources import load_task
from simcse.evaluation.tasks import PairTask
from simcse.reports.runs import ITEMS_FILE

STUDY = Path(__file__).with_suffix(".md")
FOLDER = Path("outputs/studies/length")
WAYS = {
    "random": ["training.batching=random"],
    "grouped": ["training.batching=length_grouped"],
    "grouped-bfloat16": ["training.batching=length_grouped", "training.precision=bfloat16"],
}
SEEDS = (0, 1, 2, 3, 4)
TASKS = ("STS12", "STS13", "STSB")


def main() -> int:
    """Run what is missing, then write the results."""
    if len(sys.argv) != 3:
        print(__doc__, file=sys.stderr)
        return 2
    text, senteval = sys.argv[1:]
    for way, settings in WAYS.items():
        simcse(
            "train", "configs/unsup_wiki_mini.yaml", f"data.train={text}",
            f"evaluation.data={senteval}", "evaluation.raw_poolings=[]", *settings,
            f"seeds={','.join(map(str, SEEDS))}", f"output={FOLDER / way}",
        )  # fmt: skip
    blocks = [simcse("compare", str(FOLDER / "random"), str(FOLDER / "grouped"))]
    blocks.append(simcse("compare", str(FOLDER / "grouped"), str(FOLDER / "grouped-bfloat16")))
    results = "\n\n".join(f"```\n{block.strip()}\n```" for block in blocks)
    results += "\n\n" + length_table(Path(senteval))
    before, _, after = STUDY.read_text(encoding="utf-8").partition("<!-- results -->")
    after = after[after.index("<!-- end -->") :]
    STUDY.write_text(f"{before}<!-- results -->\n{results}\n{after}", encoding="utf-8")
    return 0


def length_table(senteval: Path) -> str:
    """Markdown: Spearman's ρ of similarity and difference in tokens, mean ± std over seeds."""
    tokenizer = AutoTokenizer.from_pretrained(source_of("mini-bert"))
    lines = [f"| | {' | '.join(TASKS)} |", "|---" * (len(TASKS) + 1) + "|"]
    gaps, grades = {}, []
    for name in TASKS:
        task = load_task(name, senteval)
        if not isinstance(task, PairTask):
            raise SystemExit(f"{name} has no pairs")
        first, second = (
            np.array([len(ids) for ids in tokenizer(texts)["input_ids"]])
            for texts in (task.sentence1, task.sentence2)
        )
        gaps[name] = np.abs(first - second)
        grades.append(f"{spearmanr(task.grades, gaps[name]).statistic:.3f}")
    lines.append(f"| the human grades | {' | '.join(grades)} |")
    for way in WAYS:
        cells = []
        for name in TASKS:
            found = []
            for seed in SEEDS:
                with np.load(FOLDER / way / f"seed-{seed}" / ITEMS_FILE) as items:
                    found.append(spearmanr(items[f"{name}.similarity"], gaps[name]).statistic)
            cells.append(f"{statistics.mean(found):.3f} ± {statistics.stdev(found):.3f}")
        lines.append(f"| {way} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
