"""Pre-train the shipped encoder further: masked language modelling that can be stopped at any time.

    python scripts/pretrain_mini_bert.py sentences.txt.xz STATE --tokens 300e6
    python scripts/pretrain_mini_bert.py sentences.txt.xz STATE --export FOLDER

Vocabulary and first weights are those of ``simcse/assets/mini-bert``. ``sentences.txt.xz`` (or .gz,
or plain text) holds one sentence a line. ``STATE`` keeps the token ids, the newest state and
``log.jsonl``; the same command goes on where the state was saved, whatever stopped it.

Nothing is padded: a micro-batch holds sentences of one length, and a step accumulates micro-batches
of several lengths. A 500th of the sentences, chosen by a hash, is held out; the loss on it is
logged. The learning rate is constant after a warm-up and falls over the last fifth of ``--tokens``
(the schedule of MiniCPM, https://arxiv.org/abs/2404.06395), so the total may be changed on the way.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import lzma
import os
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO

import numpy as np
import torch
from ship_model import store_as_float16
from torch.nn import functional
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

MINI_BERT = Path(__file__).parent.parent / "simcse" / "assets" / "mini-bert"
MAX_LENGTH = 128
MICRO_BATCH_TOKENS, MICRO_BATCHES = 4096, 4  # a step is about 16,000 tokens
MASKED_SHARE = 0.25  # above BERT's 15%: short training profits from more targets a step
PEAK_LEARNING_RATE, WARMUP_STEPS, DECAY_SHARE = 1e-3, 500, 0.2
HELD_OUT_EVERY = 500
SAVE_EVERY = 100  # steps
STATE_FILE = "state.pt"


def open_text(path: Path) -> IO[str]:
    """A text file, compressed or not, as UTF-8."""
    if path.suffix == ".xz":
        return lzma.open(path, "rt", encoding="utf-8")
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")


def token_ids(corpus: Path, state: Path) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Sentences as uint16 token ids, for training and held out; tokenised once into ``state``."""
    flat_path, ends_path = state / "ids.npy", state / "ends.npy"
    if not ends_path.is_file():
        tokenizer = AutoTokenizer.from_pretrained(MINI_BERT)
        flat: list[np.ndarray] = []
        with open_text(corpus) as file:
            lines = (line.strip() for line in file)
            while chunk := list(islice(filter(None, lines), 20_000)):
                found = tokenizer(chunk, truncation=True, max_length=MAX_LENGTH)["input_ids"]
                flat += [np.array(row, dtype=np.uint16) for row in found]
        np.save(flat_path, np.concatenate(flat))
        np.save(ends_path, np.cumsum([len(row) for row in flat]))  # last: it marks the whole
    rows = np.split(np.load(flat_path), np.load(ends_path)[:-1])
    held_out = [row for row in rows if _bucket(row) == 0]
    return [row for row in rows if _bucket(row) != 0], held_out


def _bucket(row: np.ndarray) -> int:
    return int.from_bytes(hashlib.blake2b(row.tobytes(), digest_size=8).digest()) % HELD_OUT_EVERY


def micro_batches(rows: list[np.ndarray], seed: int) -> Iterator[np.ndarray]:
    """One epoch of arrays ``(sentences, length)``, each of one length, in random order."""
    random = np.random.default_rng(seed)
    lengths = np.array([len(row) for row in rows])
    chunks = []
    for length in np.unique(lengths):
        chosen = random.permutation(np.flatnonzero(lengths == length))
        size = MICRO_BATCH_TOKENS // int(length)
        # What does not fill a micro-batch waits for another epoch; rare lengths make a small one.
        whole = max(len(chosen) // size, 1)
        chunks += [chosen[i * size : (i + 1) * size] for i in range(whole)]
    for number in random.permutation(len(chunks)):
        yield np.stack([rows[i] for i in chunks[number]])


def mask_tokens(
    batch: np.ndarray, first: int, size: int, mask: int, random: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """BERT's masking: of the chosen tokens 80% become [MASK], 10% random, 10% stay.

    Returns:
        Ids, which of them to predict, and the ids to predict.
    """
    ids = torch.from_numpy(batch.astype(np.int64))
    chosen = (torch.rand(ids.shape, generator=random) < MASKED_SHARE) & (ids >= first)
    targets = ids[chosen]
    fate = torch.rand(ids.shape, generator=random)
    ids[chosen & (fate < 0.8)] = mask
    replaced = chosen & (fate >= 0.9)
    ids[replaced] = torch.randint(first, size, (int(replaced.sum()),), generator=random)
    return ids, chosen, targets


class Pretraining:
    """Model, optimiser and the place in the text; saved as one file."""

    def __init__(self, state: Path) -> None:
        self.path = state / STATE_FILE
        # No dropout: a sentence is seen a few times only (as in https://arxiv.org/abs/2212.14034).
        config = BertConfig.from_pretrained(MINI_BERT)
        config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
        self.model = BertForMaskedLM.from_pretrained(MINI_BERT, config=config, dtype=torch.float32)
        decayed = [p for p in self.model.parameters() if p.ndim > 1]
        others = [p for p in self.model.parameters() if p.ndim <= 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}],
            betas=(0.9, 0.98),
            fused=True,
        )
        self.place = {"step": 0, "tokens": 0, "epoch": 0, "consumed": 0}
        if self.path.is_file():
            saved = torch.load(self.path, weights_only=True)
            self.model.load_state_dict(saved["model"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.place = saved["place"]

    def save(self) -> None:
        """Replace the saved state in one step."""
        temporary = self.path.with_suffix(".new")
        content = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "place": self.place,
        }
        with temporary.open("wb") as file:
            torch.save(content, file)
            os.fsync(file.fileno())
        temporary.replace(self.path)

    def loss(self, batch: np.ndarray, random: torch.Generator) -> torch.Tensor:
        """Mean cross-entropy at the masked tokens of a micro-batch."""
        first, mask = 5, 4  # the five special tokens come first; [MASK] is the last of them
        size = self.model.config.vocab_size
        ids, chosen, targets = mask_tokens(batch, first, size, mask, random)
        hidden = self.model.bert(input_ids=ids).last_hidden_state
        return functional.cross_entropy(self.model.cls(hidden[chosen]).float(), targets)

    @torch.no_grad()
    def held_out_loss(self, rows: list[np.ndarray]) -> float:
        """Loss on the held-out sentences, always with the same masks."""
        random = torch.Generator().manual_seed(0)
        losses = []
        with native_bfloat16():
            for batch in micro_batches(rows, 0):
                losses.append(float(self.loss(batch, random)))
        return float(np.mean(losses))


def native_bfloat16() -> torch.autocast:
    """Mixed precision where the processor has bfloat16 products, else none."""
    has = torch.cpu.get_capabilities()
    native = bool(has.get("amx_bf16") or has.get("avx512_bf16"))
    return torch.autocast("cpu", torch.bfloat16, enabled=native)


def pretrain(
    run: Pretraining, rows: list[np.ndarray], held_out: list[np.ndarray], total: int
) -> None:
    """Train until ``total`` tokens have been seen; saves and logs on the way."""
    place, recent, started = run.place, [], time.monotonic()
    epoch = islice(micro_batches(rows, 1 + place["epoch"]), place["consumed"], None)
    while place["tokens"] < total:
        batches = list(islice(epoch, MICRO_BATCHES))
        if not batches:
            place["epoch"], place["consumed"] = place["epoch"] + 1, 0
            epoch = micro_batches(rows, 1 + place["epoch"])
            continue
        rate = learning_rate(place["step"], place["tokens"] / total)
        for group in run.optimizer.param_groups:
            group["lr"] = rate
        random = torch.Generator().manual_seed(place["step"])
        for batch in batches:
            with native_bfloat16():
                loss = run.loss(batch, random)
            (loss / len(batches)).backward()
            recent.append(float(loss.detach()))
        torch.nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
        run.optimizer.step()
        run.optimizer.zero_grad()
        place["step"] += 1
        place["consumed"] += len(batches)
        place["tokens"] += sum(batch.size for batch in batches)
        if place["step"] % SAVE_EVERY == 0 or place["tokens"] >= total:
            seconds, started = time.monotonic() - started, time.monotonic()
            entry = {**place, "rate": rate, "loss": float(np.mean(recent)), "seconds": seconds}
            entry["held_out"] = run.held_out_loss(held_out)
            recent = []
            run.save()
            print(json.dumps(entry), flush=True)
            with run.path.with_name("log.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")


def learning_rate(step: int, share: float) -> float:
    """Of a step, when ``share`` of all tokens have been seen."""
    warmth = min(1.0, (step + 1) / WARMUP_STEPS)
    return PEAK_LEARNING_RATE * warmth * min(1.0, max(0.01, (1 - share) / DECAY_SHARE))


def export(run: Pretraining, folder: Path) -> None:
    """Write the encoder with its language-model head: float16 on disk, loaded as float32."""
    config = BertConfig.from_pretrained(MINI_BERT)  # with its dropout
    run.model.config.hidden_dropout_prob = config.hidden_dropout_prob
    run.model.config.attention_probs_dropout_prob = config.attention_probs_dropout_prob
    run.model.save_pretrained(folder)
    store_as_float16(folder)
    print(f"written to {folder} after {run.place['tokens']:,} tokens")


def main() -> None:
    """Read the arguments; train or export."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=Path, help="one sentence a line, UTF-8; also .gz or .xz")
    parser.add_argument("state", type=Path, help="folder of the state; made if it is not there")
    parser.add_argument("--tokens", type=float, default=300e6, help="in all (default: 300e6)")
    parser.add_argument("--export", type=Path, metavar="FOLDER", help="write the weights and stop")
    arguments = parser.parse_args()
    arguments.state.mkdir(parents=True, exist_ok=True)
    run = Pretraining(arguments.state)
    if arguments.export is not None:
        export(run, arguments.export)
        return
    rows, held_out = token_ids(arguments.corpus, arguments.state)
    tokens = sum(map(len, rows))
    print(f"{len(rows):,} sentences, {tokens:,} tokens; held out {len(held_out):,}", flush=True)
    pretrain(run, rows, held_out, int(arguments.tokens))


if __name__ == "__main__":
    main()
