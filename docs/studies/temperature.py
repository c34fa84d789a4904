"""What the temperature of InfoNCE looks at: weights of the negatives in one batch.

    python docs/studies/temperature.py

The gradient of InfoNCE with respect to the similarity of negative j is its share of the softmax,
over the temperature. On 20 batches of 64 sentences (shipped documents, dev; two dropout views by
mini-bert, mean pooling, seed 0) this takes those shares at temperatures from 0.005 to 2, prints a
table and writes temperature.svg beside itself. Nothing is trained; it takes half a minute.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure

from simcse.config.settings import EncoderConfig
from simcse.data.documents import Documents, embedded_documents, sentences
from simcse.encoders import encoder
from simcse.objectives import diagnostics, pair_logits

TEMPERATURES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
BATCHES, BATCH = 20, 64


def main() -> None:
    """Measure, write the table and the plot."""
    torch.manual_seed(0)
    model = encoder.build(EncoderConfig()).train()
    documents = Documents(embedded_documents()).held_out("dev")
    found = dict.fromkeys(s for document in documents for s in sentences(document.text, "en"))
    texts = list(found)[: BATCHES * BATCH]
    views = []
    with torch.no_grad():
        for start in range(0, len(texts), BATCH):
            batch = texts[start : start + BATCH]
            two = [model(model.preprocess(batch))["sentence_embedding"] for _ in range(2)]
            views.append(two)
    rows = [measure(views, temperature) for temperature in TEMPERATURES]
    head = ["temperature", "hardest negative's weight", "hardest six", "effective negatives"]
    head.append("probability of the positive")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for temperature, (first, six, effective, probability) in zip(TEMPERATURES, rows, strict=True):
        cells = [f"{first:.1%}", f"{six:.1%}", f"{effective:.1f} of 63", f"{probability:.3f}"]
        lines.append(f"| {temperature} | {' | '.join(cells)} |")
    print("\n".join(lines))
    draw(np.array(rows), Path(__file__).with_suffix(".svg"))


def measure(views: list[list[torch.Tensor]], temperature: float) -> tuple[float, ...]:
    """Mean share of the hardest negative, of six of 63, effective negatives, P(positive)."""
    found = []
    for anchor, positive in views:
        logits = pair_logits(anchor.double(), positive.double(), temperature)
        own = torch.eye(len(logits), dtype=torch.bool)
        share = torch.softmax(logits.masked_fill(own, -torch.inf), dim=1)
        ordered = share.sort(dim=1, descending=True).values
        values = diagnostics(logits, temperature)
        found.append(
            (
                float(ordered[:, 0].mean()),
                float(ordered[:, :6].sum(dim=1).mean()),
                values["effective_negatives"],
                values["positive_probability"],
            )
        )
    return tuple(np.mean(found, axis=0).tolist())


def draw(rows: np.ndarray, path: Path) -> None:
    """Two panels over the temperature: who gets the weight, and how sure the positive is."""
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "simcse", "font.size": 10}):
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        weights, probability = figure.subplots(1, 2)
        weights.plot(TEMPERATURES, rows[:, 0], "o-", label="hardest of 63 negatives")
        weights.plot(TEMPERATURES, rows[:, 1], "s-", label="hardest six")
        weights.plot(TEMPERATURES, rows[:, 2] / 63, "D-", label="effective number / 63")
        weights.set_title("share of the negatives' weight", fontsize=10)
        probability.plot(TEMPERATURES, rows[:, 3], "o-", color="black")
        probability.set_title("probability of the positive", fontsize=10)
        for axes in (weights, probability):
            axes.set_xscale("log")
            axes.set_xlabel("temperature")
            axes.set_ylim(0, 1.02)
            axes.grid(alpha=0.25)
        weights.legend(frameon=False)
        figure.savefig(path, format="svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
