"""Pre-train the shipped encoder: WordPiece, skip-gram first embeddings, masked language modelling.

    python scripts/pretrain_mini_bert.py sentences.txt FOLDER --minutes 57

``sentences.txt`` holds one sentence a line. The shipped weights come from 950,000 sentences of
English and Simple English Wikipedia. The run is bounded by time, not by steps, so another machine
ends with other weights; the card in ``simcse/assets/mini-bert`` states what this one reached.

Needs gensim (``pip install gensim``), which the project itself does not depend on.

Why skip-gram first: an hour on two cores is too short for a language model to find good word
vectors by itself; three epochs of skip-gram over the same text take minutes and give it a start.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from gensim.models import Word2Vec
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from torch.nn import functional
from transformers import (
    AutoModelForMaskedLM,
    BertConfig,
    BertForMaskedLM,
    PreTrainedTokenizerFast,
)

VOCABULARY, WIDTH, LAYERS, HEADS = 8192, 256, 4, 4
MAX_LENGTH = 64
TOKENS_PER_STEP = 64 * MAX_LENGTH
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PAD, UNKNOWN, CLS, SEP, MASK = range(len(SPECIAL))
MASKED_SHARE = 0.25  # above BERT's 15%: short training profits from more targets a step
PEAK_LEARNING_RATE, WARMUP_STEPS = 1e-3, 200
EMBEDDING_STD = 0.035


def train_tokenizer(sentences: list[str], folder: Path) -> Tokenizer:
    """Train a lower-case WordPiece vocabulary and save it as a transformers tokenizer."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=VOCABULARY, min_frequency=3, limit_alphabet=400, special_tokens=list(SPECIAL)
    )
    tokenizer.train_from_iterator(sentences, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=2 * MAX_LENGTH,
    ).save_pretrained(folder)
    return tokenizer


def skip_gram_vectors(ids: list[list[int]], size: int, seed: int) -> np.ndarray:
    """First token embeddings, float32 of shape ``(size, WIDTH)``; unseen tokens stay random."""
    sentences = [[str(token) for token in row[1:-1]] for row in ids]
    vectors = Word2Vec(
        sentences, vector_size=WIDTH, window=6, min_count=1, sg=1, negative=8, epochs=3,
        workers=torch.get_num_threads(), seed=seed, sample=1e-4,
    ).wv  # fmt: skip
    embeddings = 0.02 * np.random.default_rng(seed).standard_normal((size, WIDTH), dtype=np.float32)
    known = [token for token in range(size) if str(token) in vectors]
    learned = np.stack([vectors[str(token)] for token in known])
    learned -= learned.mean(axis=0)
    embeddings[known] = learned * (EMBEDDING_STD / learned.std())
    return embeddings


def batches(ids: list[list[int]]) -> Iterator[list[list[int]]]:
    """Endless batches of about ``TOKENS_PER_STEP`` tokens, sentences of like length together."""
    while True:
        order = sorted(ids, key=lambda row: len(row) + 2 * random.random())
        epoch: list[list[list[int]]] = [[]]
        for row in order:  # by rising length, so the newest row is the longest of its batch
            if (len(epoch[-1]) + 1) * len(row) > TOKENS_PER_STEP and epoch[-1]:
                epoch.append([])
            epoch[-1].append(row)
        random.shuffle(epoch)
        yield from epoch


def mask_tokens(
    rows: list[list[int]], size: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """BERT's masking: of the chosen tokens 80% become [MASK], 10% random, 10% stay.

    Returns:
        Padded ids, which of them to predict, and the ids to predict.
    """
    longest = max(map(len, rows))
    ids = torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])
    chosen = (torch.rand(ids.shape) < MASKED_SHARE) & (ids >= len(SPECIAL))
    targets = ids[chosen]
    fate = torch.rand(ids.shape)
    ids[chosen & (fate < 0.8)] = MASK
    replaced = chosen & (fate >= 0.9)
    ids[replaced] = torch.randint(len(SPECIAL), size, (int(replaced.sum()),))
    return ids, chosen, targets


def pretrain(model: BertForMaskedLM, ids: list[list[int]], seconds: float, folder: Path) -> None:
    """Train for a given time with a linearly falling learning rate; save every 1,000 steps."""
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in model.parameters() if p.ndim > 1]},
            {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
        ],
        weight_decay=0.01,
        betas=(0.9, 0.98),
        fused=True,
    )
    model.train()
    started, average, step = time.monotonic(), math.nan, 0
    for step, rows in enumerate(batches(ids), 1):
        elapsed = time.monotonic() - started
        if elapsed > seconds:
            break
        rate = PEAK_LEARNING_RATE * min(1, step / WARMUP_STEPS) * max(0.02, 1 - elapsed / seconds)
        for group in optimizer.param_groups:
            group["lr"] = rate
        inputs, chosen, targets = mask_tokens(rows, model.config.vocab_size)
        if len(targets) == 0:
            continue
        attention_mask = (inputs != PAD).long()
        hidden = model.bert(input_ids=inputs, attention_mask=attention_mask).last_hidden_state
        loss = functional.cross_entropy(model.cls.predictions(hidden[chosen]), targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average = loss.item() if math.isnan(average) else 0.98 * average + 0.02 * loss.item()
        if step % 100 == 0:
            print(f"step {step}, {elapsed:.0f} s, loss {average:.3f}", flush=True)
        if step % 1000 == 0:
            model.save_pretrained(folder)
    model.half().save_pretrained(folder)  # half the size on disk …
    config_file = folder / "config.json"
    config = json.loads(config_file.read_text(encoding="utf-8")) | {"dtype": "float32"}
    config_file.write_text(json.dumps(config, indent=2) + "\n")  # … loaded as float32
    print(f"done: {step - 1} steps, loss {average:.3f}")


def main() -> None:
    """Read the arguments and run all three stages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=Path, help="one sentence a line, UTF-8")
    parser.add_argument("folder", type=Path, help="where tokenizer and weights go")
    parser.add_argument("--minutes", type=float, default=57, help="time for language modelling")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    torch.manual_seed(arguments.seed)

    sentences = [line.strip() for line in arguments.corpus.open(encoding="utf-8") if line.strip()]
    random.shuffle(sentences)
    tokenizer = train_tokenizer(sentences, arguments.folder)
    ids = [encoding.ids[:MAX_LENGTH] for encoding in tokenizer.encode_batch(sentences)]
    print(f"{len(ids):,} sentences, {sum(map(len, ids)):,} tokens")
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH,
        max_position_embeddings=2 * MAX_LENGTH,
    )
    model = AutoModelForMaskedLM.from_config(config, attn_implementation="eager")
    vectors = skip_gram_vectors(ids, tokenizer.get_vocab_size(), arguments.seed)
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight.copy_(torch.from_numpy(vectors))
    pretrain(model, ids, 60 * arguments.minutes, arguments.folder)


if __name__ == "__main__":
    main()
