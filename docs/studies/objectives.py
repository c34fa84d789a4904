r"""Every objective, view option, and source of supervision on the shipped encoder.

    python docs/studies/objectives.py WIKI.txt SENTEVAL CAPTIONS.tsv TRIPLETS.csv TEACHER \
        [SEEDS] [ROWS]

Each row changes configs/unsup_wiki_mini.yaml as it says: 250 steps of 64, 16,000 sentences, one
run a seed (default 0); with ROWS only the first so many rows. Runs lie below
outputs/studies/objectives; finished ones are not repeated, so the script can be stopped and started
again, and given more seeds. It writes objectives.table.md beside itself; rows that were not run
stay blank. With `time` in place of SEEDS it measures instead the CPU seconds of a training step of
each row (median of six steps on the run's first batches), and writes objectives.seconds.json.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from itertools import islice
from pathlib import Path

from simcse.cli.main import main as simcse
from simcse.config.reading import load_config
from simcse.training.dry_run import step_seconds
from simcse.training.preparing import prepare

FOLDER = Path("outputs/studies/objectives")
TABLE = Path(__file__).with_name("objectives.table.md")
SECONDS = Path(__file__).with_name("objectives.seconds.json")
REPEAT = "views=[{}, {repeat: 0.32}]"
RATES = "views=[{dropout: 0.05}, {dropout: 0.15}]"
CONSERT = "views=[{shuffle: true}, {cutoff: 0.15}]"
TEMPLATE = "views=[{template: 'The sentence {} has a meaning.'}, {template: 'It says: {}'}]"
CLIP = ["objective.terms=clip", "objective.temperature={start: 0.07, schedule: learnable}"]
LONG = ["training.steps=1000", "evaluation.every=100"]
PLAIN = "encoder.projection=none"


def rows(captions: str, triplets: str, teacher: str) -> dict[str, list[str]]:
    """Name of each row to its settings, the most telling first."""
    nli = [f"data.train={triplets}", "data.form=pairs"]
    groups = [
        f"data.train={captions}", "data.form=labelled", "data.names=[id, text]",
        "data.columns=[text, id]", "data.quotes=false", "training.batch_size=128",
    ]  # fmt: skip
    taught = [PLAIN, f"objective.teacher={teacher}"]
    return {
        "info_nce (as shipped)": [],
        "NLI triplets, info_nce": [*nli, "data.columns=[sent0, sent1, hard_neg]"],
        "distill_l2": [*taught, "objective.terms=distill_l2"],
        "distill_similarity": [*taught, "objective.terms=distill_similarity"],
        "caption groups, sup_con": [*groups, "objective.terms=sup_con"],
        "caption groups, info_nce": groups,
        "nt_xent": ["objective.terms=nt_xent"],
        "decoupled": ["objective.terms=decoupled"],
        "clip, temperature learned": CLIP,
        "dino": ["objective.terms=dino"],
        "info_nce + 0.1 mlm": ["objective.terms=[{info_nce: 1.0}, {mlm: 0.1}]"],
        "view: word repetition": [REPEAT],
        "view: dropout 0.05 and 0.15": [RATES],
        "view: shuffle, cutoff": [CONSERT],
        "view: two templates": [TEMPLATE],
        "NLI pairs, no hard negatives": [*nli, "data.columns=[sent0, sent1]"],
        "NLI pairs, clip, two towers": [
            *nli, "data.columns=[sent0, sent1]", *CLIP, "encoder.towers=two", PLAIN,
        ],
        "temperature 0.2 to 0.05, cosine": [
            "objective.temperature={start: 0.2, schedule: cosine, end: 0.05}"
        ],
        "1,000 steps: info_nce": LONG,
        "1,000 steps: NLI triplets": [*nli, "data.columns=[sent0, sent1, hard_neg]", *LONG],
        "1,000 steps: distill_l2": [*taught, "objective.terms=distill_l2", *LONG],
    }  # fmt: skip


def main() -> int:
    """Run what is missing seed by seed, rewriting the table after every run."""
    if len(sys.argv) not in (6, 7, 8):
        print(__doc__, file=sys.stderr)
        return 2
    text, senteval, captions, triplets, teacher = sys.argv[1:6]
    everything = rows(captions, triplets, teacher)
    if sys.argv[6:7] == ["time"]:
        seconds = {
            name: cpu_seconds([*common(text, senteval), *settings])
            for name, settings in everything.items()
            if LONG[0] not in settings
        }
        SECONDS.write_text(json.dumps(seconds, indent=2) + "\n", encoding="utf-8")
        TABLE.write_text(table(list(everything)), encoding="utf-8")
        return 0
    seeds = [int(seed) for seed in (sys.argv[6] if len(sys.argv) > 6 else "0").split(",")]
    most = int(sys.argv[7]) if len(sys.argv) > 7 else None
    for seed in seeds:
        for name, settings in islice(everything.items(), most):
            output = f"output={folder(name, seed)}"
            status = simcse(
                [
                    "train",
                    "configs/unsup_wiki_mini.yaml",
                    *common(text, senteval),
                    *settings,
                    f"seed={seed}",
                    output,
                ]
            )
            if status == 130:
                return status
            TABLE.write_text(table(list(everything)), encoding="utf-8")
    return 0


def common(text: str, senteval: str) -> list[str]:
    """Settings of every row."""
    settings = [f"data.train={text}", f"evaluation.data={senteval}", "seed=0"]
    return [*settings, "evaluation.raw_poolings=[]", "evaluation.tasks=[STS12, STS13]"]


def folder(name: str, seed: int) -> Path:
    """Run folder of a row and seed."""
    return FOLDER / "".join(c if c.isalnum() else "-" for c in name) / f"seed-{seed}"


def table(names: list[str]) -> str:
    """Markdown: mean (± standard deviation over seeds) of each row."""
    head = ["", "seeds", "STS-B dev", "STS12", "STS13", "alignment", "uniformity", "CPU s per step"]
    seconds = json.loads(SECONDS.read_text(encoding="utf-8")) if SECONDS.is_file() else {}
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name in names:
        paths = sorted(folder(name, 0).parent.glob("seed-*/scores.json"))
        found = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
        cells = [
            cell([run["dev"]["best"] for run in found], 100, 1),
            *(cell([r["trained"][t]["cosine_spearman"] for r in found], 100, 1) for t in _STS),
            cell([run["trained"]["geometry"]["alignment"] for run in found], 1, 3),
            cell([run["trained"]["geometry"]["uniformity"] for run in found], 1, 2),
            cell([seconds[name]] if name in seconds else [], 1, 2),
        ]
        lines.append(f"| {name} | {len(found) or ''} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


_STS = ("STS12", "STS13")


def cpu_seconds(settings: list[str]) -> float:
    """CPU seconds of a training step, without the optimiser's."""
    config = load_config("unsup_wiki_mini", settings)
    return step_seconds(config, prepare(config), time.process_time)


def cell(values: list[float], scale: float, digits: int) -> str:
    """Mean, with the standard deviation of several; blank for none."""
    if not values:
        return ""
    mean = f"{scale * statistics.mean(values):.{digits}f}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {scale * statistics.stdev(values):.{digits}f}"


if __name__ == "__main__":
    raise SystemExit(main())
