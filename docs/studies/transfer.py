"""Our classifier of the transfer tasks against SentEval's own code, on the same embeddings.

    python docs/studies/transfer.py SENTEVAL CODE TASKS SEEDS [FOLDS]

embeds the sentences of TASKS (MRPC,TREC) in SENTEVAL, a folder in its layout, with the shipped
mini-bert (mean pooling), and classifies them with simcse and with CODE, a clone of
facebookresearch/SentEval, once for each of SEEDS (1111,1,2), in 10 folds unless FOLDS says another
number. What is scored goes to outputs/studies/transfer/, so that the study can be started again;
the table of all that is there goes to transfer.md beside this file.

SentEval's code runs as it is, but on the CPU, and its Adam is PyTorch's fused one.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from simcse.config.settings import EncoderConfig
from simcse.encoders import encoder
from simcse.encoders.encoding import encode_by_length
from simcse.evaluation import senteval
from simcse.evaluation.protocol import EmbeddingCache
from simcse.evaluation.transfer import load_transfer

STUDY = Path(__file__).with_suffix(".md")
FOLDER = Path("outputs/studies/transfer")


def main() -> int:
    """Score what is missing, then write the table."""
    if len(sys.argv) not in (5, 6):
        print(__doc__, file=sys.stderr)
        return 2
    data, code = Path(sys.argv[1]), Path(sys.argv[2])
    tasks, seeds = sys.argv[3].split(","), map(int, sys.argv[4].split(","))
    senteval.FOLDS = int(sys.argv[5]) if len(sys.argv) == 6 else senteval.FOLDS
    torch.set_num_threads(1)
    FOLDER.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        for task in tasks:
            path = FOLDER / f"{task}-{senteval.FOLDS}-{seed}.json"
            if not path.exists():
                path.write_text(json.dumps(list(compared(task, seed, data, code))))
            print(path.name, path.read_text(), flush=True)
    before, _, after = STUDY.read_text(encoding="utf-8").partition("<!-- results -->")
    after = after[after.index("<!-- end -->") :]
    STUDY.write_text(f"{before}<!-- results -->\n{table()}\n{after}", encoding="utf-8")
    return 0


def compared(task: str, seed: int, data: Path, code: Path) -> Iterator[tuple[float, float]]:
    """Accuracy ×100 and CPU seconds of SentEval's code, then of ours."""
    ours, embed = replace(load_transfer(task, data), seed=seed), embeddings(task, data)
    start = time.process_time()
    accuracy = senteval_accuracy(task, seed, data, code, embed)
    yield accuracy, time.process_time() - start
    start = time.process_time()
    accuracy = 100 * ours.score(embed).scores["accuracy"]
    yield accuracy, time.process_time() - start


def embeddings(task: str, data: Path) -> EmbeddingCache:
    """Of every sentence of a task, kept in a file."""
    texts = list(dict.fromkeys(load_transfer(task, data).texts()))
    path = FOLDER / f"{task}.npy"
    if not path.exists():
        np.save(path, encode_by_length(encoder.build(EncoderConfig(pooling="mean")), texts, 64))
    rows = dict(zip(texts, np.load(path), strict=True))
    return EmbeddingCache(lambda wanted: np.stack([rows[text] for text in wanted]))


def senteval_accuracy(task: str, seed: int, data: Path, code: Path, embed: EmbeddingCache) -> float:
    """What SentEval's code gives with the settings of SimCSE's ``--mode test``."""
    torch.Tensor.cuda = torch.nn.Module.cuda = lambda self: self  # type: ignore[assignment,method-assign]
    sys.path.insert(0, str(code))
    from senteval import engine, utils
    from senteval.tools.classifier import MLP

    MLP.__init__.__defaults__ = (0.0, 64, 1111, True)  # cudaEfficient: tensors stay on the CPU
    utils.get_optimizer = lambda _: (functools.partial(torch.optim.Adam, fused=True), {})
    layout = FOLDER / "layout"
    layout.mkdir(exist_ok=True)
    if not (layout / "downstream").exists():
        (layout / "downstream").symlink_to(data.absolute())
    settings: dict[str, Any] = {
        "task_path": str(layout), "usepytorch": True, "kfold": senteval.FOLDS, "seed": seed,
        "classifier": {
            "nhid": 0, "optim": "adam", "batch_size": 64, "tenacity": 5, "epoch_size": 4
        },
    }  # fmt: skip

    def batcher(_: object, batch: list[list[str]]) -> np.ndarray:
        return embed([" ".join(words) for words in batch])

    accuracy: float = engine.SE(settings, batcher, lambda *_: None).eval(task)["acc"]
    return accuracy


def table() -> str:
    """Mean and standard deviation over the seeds, and how far the two are apart with one seed."""
    head = ["task", "folds", "seeds", "SentEval's code", "simcse"]
    head += ["largest difference, same seed", "CPU seconds per seed"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    files = [path.stem.split("-") for path in sorted(FOLDER.glob("*.json"))]
    for task, folds in dict.fromkeys((task, folds) for task, folds, _ in files):
        paths = FOLDER.glob(f"{task}-{folds}-*.json")
        runs = np.array([json.loads(path.read_text()) for path in paths])  # (seeds, 2 codes, 2)
        theirs, ours = runs[:, :, 0].T
        seconds = runs[:, :, 1].mean(axis=0)
        cells = [task, folds, str(len(runs)), summary(theirs), summary(ours)]
        cells += [f"{np.abs(theirs - ours).max():.2f}", f"{seconds[0]:.0f}, {seconds[1]:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def summary(accuracies: np.ndarray) -> str:
    """Mean ± standard deviation, the latter for several seeds."""
    spread = f" ± {accuracies.std(ddof=1):.2f}" if len(accuracies) > 1 else ""
    return f"{accuracies.mean():.2f}{spread}"


if __name__ == "__main__":
    raise SystemExit(main())
