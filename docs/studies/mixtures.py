"""Several data sets against each alone, and mined hard negatives against those of the data.

    python docs/studies/mixtures.py SENTEVAL TRIPLETS.csv CAPTIONS.tsv MODEL [SEEDS]

The shipped encoder is trained for 150 steps on NLI pairs, on captions (those of one picture are
positives), on the shipped documents and on all three by turns, then on NLI triplets with the hard
negatives of TRIPLETS, with one mined by MODEL in its place, and with none. Every run is scored on
STS12, STS13, the dev part of STS-B, retrieval among captions of 600 pictures that are left out of
the training text, and search among held-out documents. Nothing chooses a checkpoint: each run has
one. Runs lie below outputs/studies/mixtures; finished ones are not repeated, so the script can be
stopped and started again, and given more seeds (default 0). After each run it writes
mixtures.table.md beside itself.
"""

from __future__ import annotations

import csv
import json
import statistics
import sys
from pathlib import Path

from adapt import make_captions, read_captions

from simcse.cli.main import main as simcse

FOLDER = Path("outputs/studies/mixtures")
TABLE = Path(__file__).with_name("mixtures.table.md")
STEPS = 150
TASKS = ("STS12", "STS13", "STSB-dev")
RETRIEVAL = ("captions", "python-docs")


def main() -> int:
    """Run what is missing, seed by seed, rewriting the table after every run."""
    if len(sys.argv) not in (5, 6):
        print(__doc__, file=sys.stderr)
        return 2
    senteval, triplets, captions, model = sys.argv[1:5]
    seeds = (sys.argv[5] if len(sys.argv) > 5 else "0").split(",")
    test = make_captions(Path(captions), FOLDER)
    rest = leave_out(Path(captions), test)
    mined = FOLDER / "mined.jsonl"
    if not mined.is_file():
        words = ["mine", triplets, "data.form=pairs", "data.columns=[sent0, sent1]"]
        if status := simcse([*words, "--model", model, "--negatives", "1", "-o", str(mined)]):
            return status
    nli = {"train": triplets, "form": "pairs", "columns": ["sent0", "sent1"]}
    pictures = {"train": str(rest), "form": "labelled", "columns": ["caption", "picture"]}
    documents = {"train": "python-docs", "max_length": 64}
    given = {"train": triplets, "form": "pairs", "columns": ["sent0", "sent1", "hard_neg"]}
    texts = {
        "NLI pairs": [nli],
        "captions": [pictures],
        "documents": [documents],
        "all three, 1 : 1 : 1": [each | {"weight": 1} for each in (nli, pictures, documents)],
        "NLI, hard negatives given": [given],
        "NLI, one mined": [{"train": str(mined), "form": "pairs"}],
    }
    for seed in seeds:
        for text, sets in texts.items():
            arguments = [
                "train",
                "encoder.name=mini-bert",
                "encoder.pooling=mean",
                "encoder.projection=train_only",
                *(
                    f"data.{number}.{key}={json.dumps(value)}"
                    for number, each in enumerate(sets)
                    for key, value in each.items()
                ),
                "objective.temperature=0.1",
                "training.batching=length_grouped",
                "training.learning_rate=2e-4",
                f"training.steps={STEPS}",
                f"evaluation.every={STEPS}",
                f"evaluation.data={senteval}",
                "evaluation.dev=pairs",
                f"evaluation.tasks=[{', '.join(TASKS)}, python-docs, "
                f"{{kind: retrieval, file: {test}, name: captions}}]",
                f"evaluation.raw_poolings={'mean' if text == 'NLI pairs' else '[]'}",
                f"seed={seed}",
                f"output={folder(text, seed)}",
            ]
            if status := simcse(arguments):
                return status
            TABLE.write_text(table(list(texts), seeds), encoding="utf-8")
    return 0


def folder(text: str, seed: str) -> Path:
    """Run folder of one text and seed."""
    return FOLDER / f"{text.replace(',', '').replace(' : ', '-').replace(' ', '-')}-{seed}"


def leave_out(captions: Path, test: Path) -> Path:
    """Write the captions of all pictures but those of the test, as texts with labels."""
    target = FOLDER / "captions.csv"
    with (test / "corpus.jsonl").open(encoding="utf-8") as corpus:
        tested = {json.loads(line)["_id"].rpartition("-")[0] for line in corpus}
    with target.open("w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["caption", "picture"])
        for picture, caption in read_captions(captions):
            if picture not in tested:
                writer.writerow([caption, picture])
    return target


def table(texts: list[str], seeds: list[str]) -> str:
    """Mean ± standard deviation over seeds, ×100, in Markdown."""
    names = [*TASKS, *(f"{name}: nDCG@10" for name in RETRIEVAL)]
    lines = [f"| trained on | seeds | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
    for text in texts:
        paths = [folder(text, seed) / "scores.json" for seed in seeds]
        found = [json.loads(path.read_text()) for path in paths if path.is_file()]
        if found and found[0]["raw"]:
            (untrained,) = found[0]["raw"].values()
            cells = [f"{value:.1f}" for value in measures(untrained)]
            lines.append(f"| untrained | | {' | '.join(cells)} |")
        if found:
            values = zip(*(measures(scores["trained"]) for scores in found), strict=True)
            cells = [mean(column) for column in values]
            lines.append(f"| {text} | {len(found)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def measures(tasks: dict[str, dict[str, float]]) -> list[float]:
    """The scores of one model, ×100, in the order of the table."""
    sts = [100 * tasks[name]["cosine_spearman"] for name in TASKS]
    return sts + [100 * tasks[name]["ndcg_at_10"] for name in RETRIEVAL]


def mean(values: tuple[float, ...]) -> str:
    """With the standard deviation, where there are several."""
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


if __name__ == "__main__":
    raise SystemExit(main())
