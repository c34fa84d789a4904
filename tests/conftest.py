"""Small encoders and texts that the tests share; nothing here needs the network."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
# Threads of tiny tensors wait for one another more than they compute; for commands that tests start
# as well.
os.environ["OMP_NUM_THREADS"] = "1"

import json
import multiprocessing
import shutil
from collections import defaultdict
from html.parser import HTMLParser
from pathlib import Path
from unittest.mock import ANY

import pytest
import torch
import transformers
from matplotlib.figure import Figure
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    PreTrainedTokenizerFast,
)

from simcse.config.reading import read_config, settings_digest
from simcse.data import tokens
from simcse.evaluation import names
from simcse.reports.plots import Picture
from simcse.sealing import MANIFEST, seal
from simcse.training import checkpoints
from simcse.training.loss import TrainingLoss

ROOT = Path(__file__).parent.parent
MINI_BERT = ROOT / "simcse" / "assets" / "mini-bert"
SHARED = ROOT.parent / "shared" / "data"

# Settings of five architectures at a size that builds in milliseconds.
SMALL = {"num_attention_heads": 2, "intermediate_size": 48, "hidden_size": 32}
ARCHITECTURES = {
    "bert": ("BertConfig", {**SMALL, "num_hidden_layers": 3}),
    "roberta": ("RobertaConfig", {**SMALL, "num_hidden_layers": 3, "pad_token_id": 0}),
    "distilbert": ("DistilBertConfig", {"dim": 32, "hidden_dim": 48, "n_heads": 2, "n_layers": 3}),
    "mpnet": ("MPNetConfig", {**SMALL, "num_hidden_layers": 3, "pad_token_id": 0}),
    "modernbert": (
        "ModernBertConfig",
        {**SMALL, "num_hidden_layers": 3, "pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3,
         "bos_token_id": 2, "eos_token_id": 3, "attention_dropout": 0.1, "mlp_dropout": 0.1},
    ),
}  # fmt: skip

# Settings of others, which keep their dropout or their tokenizer in ways of their own.
_SEQ2SEQ = {"d_model": 32, "num_heads": 2, "d_ff": 48, "num_layers": 2, "d_kv": 16}
_XLM = {"emb_dim": 32, "n_layers": 2, "n_heads": 2}
OTHERS = {
    "t5": ("T5Config", _SEQ2SEQ),
    "mt5": ("MT5Config", _SEQ2SEQ),
    "bart": (
        "BartConfig",
        {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
         "decoder_attention_heads": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
         "attention_dropout": 0.1, "activation_dropout": 0.1},
    ),
    "xlm": ("XLMConfig", _XLM),
    "flaubert": ("FlaubertConfig", _XLM),
    "longformer": ("LongformerConfig", {**SMALL, "num_hidden_layers": 2, "attention_window": 8}),
    "xlm-roberta": ("XLMRobertaConfig", {**SMALL, "num_hidden_layers": 2}),
}  # fmt: skip

_DECODER = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 64, "pad_token_id": None,
}  # fmt: skip
DECODERS = {
    "llama": ("LlamaConfig", _DECODER),
    "qwen3": ("Qwen3Config", {**_DECODER, "tie_word_embeddings": True}),
    "gemma3": ("Gemma3TextConfig", {**_DECODER, "sliding_window": 8, "query_pre_attn_scalar": 16}),
    "mistral": ("MistralConfig", {**_DECODER, "sliding_window": 8}),
    "gpt2": ("GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}),
}

SENTENCES = [
    "The cat sleeps on the warm radiator.",
    "A dog runs across the wet field in the rain.",
    "The server returned an error.",
    "She reads a long novel about the sea every winter evening before she falls asleep.",
    "Two men are playing chess.",
    "Prices rose.",
]

# Processes forked from a server that has imported everything: a start costs a second and not ten.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    ["simcse.cli.main", "simcse.training.several", "test_survival", "distributed_worker"]
)

# What HTML, Markdown, YAML, jinja, matplotlib or a terminal would act on, were it not escaped.
HOSTILE = (
    "x</td></svg><script>alert(1)</script><img src=x onerror=y> \"'--> # h\n\n# head\n\n---\n"
    "license: evil\n---\n```\n[a](http://evil) ![i](y) **b** `c` | d | _e_ $\\frac$ $x$ "
    "{{ 7 * 7 }} http://evil www.evil.com &lt; \x1b[31m \u202e \u2028 \x07"
)


class Tags(HTMLParser):
    """Every tag of an HTML text with its attributes, and what a browser shows as text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, list[tuple[str, str | None]]]] = []
        self.text: list[str] = []
        self.feed(html)

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, attrs))


def make_encoder(folder: Path, architecture: str = "bert", **settings: object) -> Path:
    """Save an encoder with random weights and the shipped tokenizer."""
    config_class, values = {**ARCHITECTURES, **OTHERS}[architecture]
    config = getattr(transformers, config_class)(
        vocab_size=8192, max_position_embeddings=66, **{**values, **settings}
    )
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(folder)
    shutil.copy(MINI_BERT / "tokenizer.json", folder)
    tokens = json.loads((MINI_BERT / "tokenizer_config.json").read_text())
    tokens |= {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 64}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokens))
    return folder


def make_masked_encoder(folder: Path) -> Path:
    """Save a BERT with random weights and its masked-language-model head."""
    make_encoder(folder)
    torch.manual_seed(3)
    BertForMaskedLM(BertConfig.from_pretrained(folder)).save_pretrained(folder)
    return folder


def make_decoder(folder: Path, architecture: str = "llama", **settings: object) -> Path:
    """Save a language model with random weights, and a tokenizer without a padding token.

    Llama's marks the beginning of a text, the others nothing.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    if architecture == "llama":
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 0)]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", model_max_length=64
    )
    tokenizer.save_pretrained(folder)
    config_class, values = DECODERS[architecture]
    config = getattr(transformers, config_class)(
        vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=1, **{**values, **settings}
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def two_views(model: SentenceTransformer) -> dict[str, torch.Tensor]:
    """A batch of six sentences; the second view has them in another order."""
    texts = [*SENTENCES, *SENTENCES[::-1]]
    batch = dict(model.tokenizer(texts, padding=True, return_tensors="pt"))
    batch["identities"] = torch.arange(12).view(2, 6)
    return batch


def terms_of(loss: TrainingLoss, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weighted terms of a batch, all in one graph and without gradient caching."""
    terms: dict[str, torch.Tensor] = {}
    for name, part in loss.token_terms(features):
        terms[name] = terms[name] + part if name in terms else part
    passes = loss.passes(features)
    order = torch.cat([part.rows for part in passes]).argsort()
    embeddings = torch.cat([loss.embed(part) for part in passes])[order]
    return {**loss(embeddings, features), **terms}


def loss_of(loss: TrainingLoss, features: dict[str, torch.Tensor]) -> torch.Tensor:
    """What the terms sum up to."""
    return torch.stack(list(terms_of(loss, features).values())).sum()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of three layers, 32 wide, with random weights."""
    return make_encoder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96 distinct sentences, one a line."""
    path = tmp_path_factory.mktemp("text") / "train.txt"
    subjects = ["cat", "dog", "girl", "teacher", "river", "engine", "compiler", "market"]
    verbs = ["sees", "follows", "changes", "likes"]
    objects = ["a small house", "the old road near the station", "new music"]
    lines = [f"The {s} {v} {o}." for s in subjects for v in verbs for o in objects]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="session")
def two_seeds(tiny: Path, text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of two finished seeds of four steps; copy it before changing anything."""
    from simcse.cli.main import main

    folder = tmp_path_factory.mktemp("runs") / "small"
    settings = [f"encoder.name={tiny}", f"data.train={text_file}", "training.steps=4"]
    settings += ["training.batch_size=8", "evaluation.dev=pairs", "evaluation.tasks=pairs"]
    settings += ["evaluation.raw_poolings=mean", "seeds=0,1", f"output={folder}"]
    assert main(["train", "quickstart", *settings]) == 0
    return folder


@pytest.fixture
def one_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports and reports draw one empty figure: drawing is the slowest part of them."""
    picture = Picture("loss", "Training loss", "", Figure(), [], [])
    for module in ("publishing.export", "reports.report"):
        monkeypatch.setattr(f"simcse.{module}.pictures", lambda runs: [picture])


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """One cache folder for the whole test run, unless the environment names one."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # of all workers
    if "SIMCSE_CACHE" not in os.environ:
        monkeypatch.setenv("SIMCSE_CACHE", str(base / "cache"))


@pytest.fixture
def tokenised(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Characters of each text that the tokenizer is given, as it is given them."""
    found: list[int] = []
    original = tokens._tokenize

    def spy(texts, *rest):
        found.extend(map(len, texts))
        return original(texts, *rest)

    monkeypatch.setattr(tokens, "_tokenize", spy)
    return found


@pytest.fixture
def senteval() -> Path:
    """The shared evaluation data; skips where it is not at hand."""
    folder = SHARED / "senteval"
    if not folder.is_dir():
        pytest.skip("extra: needs SentEval's files in ../shared/data/senteval")
    return folder


@pytest.fixture
def any_size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets files that a test has made up go by a benchmark's name; published ones still count."""
    if "senteval" not in request.fixturenames:
        monkeypatch.setattr(names, "SIZES", defaultdict(lambda: ANY))
        monkeypatch.setattr(names, "CONTENTS", {})


@pytest.fixture
def arguments(tiny: Path, text_file: Path, tmp_path: Path) -> list[str]:
    """Arguments of a run of 12 steps with a checkpoint every 4."""
    config = tmp_path / "small.yaml"
    config.write_text(
        f"encoder: {{name: '{tiny}', projection: train_only}}\n"
        f"data: {{train: '{text_file}'}}\n"
        "training: {batch_size: 8, steps: 12, learning_rate: 1e-3, log_every: 1, "
        "precision: float32}\n"  # the same numbers on every machine
        "evaluation: {every: 4, raw_poolings: []}\n"
    )
    return ["train", str(config), f"output={tmp_path / 'run'}"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Folder of that run."""
    return tmp_path / "run"


def newest_checkpoint(run: Path) -> Path | None:
    """The newest whole checkpoint of a run folder."""
    return checkpoints.newest_checkpoint(run / checkpoints.CHECKPOINTS)


def reseal(run: Path, **changes: object) -> None:
    """Seal a finished run that a test has changed, and change keys of its ``scores.json``."""
    scores = json.loads((run / "scores.json").read_text())
    digest = settings_digest(read_config(run / "config.yaml"))
    (run / "scores.json").write_text(json.dumps({**scores, "settings": digest, **changes}))
    seal(run, json.loads((run / MANIFEST).read_text())["files"])


def log(run: Path) -> list[dict]:
    """Every entry of a run's log."""
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
