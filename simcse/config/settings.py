"""Every setting of a training run: its type, its range, its meaning.

One pydantic model a section, frozen and strict; :mod:`simcse.config.reading` reads them from YAML.
Nothing heavier than pydantic is imported here, so that a typing error is answered at once.
"""

from __future__ import annotations

import difflib
import glob
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    WithJsonSchema,
    model_validator,
)

from simcse.errors import UserError

Pooling = Literal["cls", "mean", "weighted_mean", "last_token", "avg_first_last", "pooler"]
TaskName = Literal[
    "pairs", "python-docs", "documents",
    "STS12", "STS13", "STS14", "STS15", "STS16", "STSB", "STSB-dev", "SICK-R",
    "MR", "CR", "SUBJ", "MPQA", "SST2", "TREC", "MRPC",
]  # fmt: skip
Attention = Literal["own", "bidirectional"]
PositiveKind = Literal["dropout", "spans", "title"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]
"""Of forward passes; ``auto`` is bfloat16 where the hardware has it, else float32."""
Vectors = Literal["float32", "int8", "uint8", "binary", "ubinary"]
"""The numbers of a stored embedding, as sentence-transformers' ``quantize_embeddings`` has them:
four bytes, one byte, or one bit each, which ``binary`` packs into int8 and ``ubinary`` into uint8.
"""
Role = Literal["query", "document"]
Backend = Literal["torch", "onnx", "onnx-int8"]
"""Which side of a search a text is on: models with two encoders or prompts embed them apart."""
Prompts = dict[Role, str]
"""What stands before a text of each side; no text for a side that is not named."""
DevTaskName = Literal["pairs", "python-docs", "documents", "STSB"]
OwnKind = Literal["graded", "pairs", "retrieval", "labelled"]
HUB_NAME = r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$"
"""A repository of the Hugging Face Hub: ``user/name``."""
MTEB = "mteb:"
"""Prefix of a task that mteb scores."""
TASK_ALIASES = {"STSBenchmark": "STSB", "STS-B": "STSB", "SICKRelatedness": "SICK-R"}


def _number_from_text(value: object) -> object:
    """Read ``3e-5`` as a number: YAML 1.1 takes it for text because it has no dot."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _list_from_one(value: object) -> object:
    return [value] if isinstance(value, str) else value


Number = Annotated[float, BeforeValidator(_number_from_text), Field(allow_inf_nan=False)]
PositiveNumber = Annotated[Number, Field(gt=0)]
# Beyond these similarities divided by it, or its logarithm, leave what float32 can hold.
Temperature = Annotated[Number, Field(ge=1e-6, le=1e6)]
# What the libraries below can count in 32 bits.
Count = Annotated[int, Field(gt=0, le=2**31 - 1)]
Dims = Annotated[Count, Field(ge=2)]  # a single number has no direction


def _path(value: str) -> str:
    try:
        return str(Path(value).expanduser()) if value.startswith("~") else value
    except RuntimeError as error:
        raise ValueError(f"{value!r}: the home folder is not known") from error


def at_commas(text: str) -> list[str]:
    """The parts between commas that are not within quotes, brackets, braces or parentheses."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character == "," and depth <= 0:
            parts.append("")
            continue
        else:
            depth += (character in "[{(") - (character in "]})")
        parts[-1] += character
    return [part.strip() for part in parts]


def _scored_task(name: str) -> str:
    if name not in get_args(TaskName) and not re.fullmatch(f"{MTEB}.*\\S.*", name):
        near = difflib.get_close_matches(name, get_args(TaskName), n=2)
        others = f"{MTEB}NAME is a task of mteb, {'|'.join(get_args(OwnKind))}:FILE one of your own"
        hint = f"did you mean {' or '.join(near)}?" if near else others
        raise ValueError(
            f"unknown task {name!r} ({hint}; allowed: {', '.join(get_args(TaskName))})"
        )
    return name


_OWN_AS_TEXT = {
    "type": "string",
    "pattern": f"^({'|'.join(get_args(OwnKind))}):.",
    "title": "KIND:FILE",
}
_MTEB_AS_TEXT = {"type": "string", "pattern": f"^{MTEB}", "title": f"{MTEB}NAME"}


def _task_list(value: object) -> object:
    value = at_commas(value) if isinstance(value, str) else value
    if isinstance(value, dict | OwnTest):
        return [value]
    return [TASK_ALIASES.get(str(n), n) for n in value] if isinstance(value, list) else value


def _number_list(value: object) -> object:
    if isinstance(value, str):  # seeds=0,1,2
        words = [word.strip() for word in value.split(",")]
        return [int(word) if word.isdecimal() else word for word in words]
    return [value] if isinstance(value, int) else value


def _weight_list(value: object) -> object:
    if isinstance(value, str):  # dim_weights=1,0.5
        with suppress(ValueError):
            return [float(word) for word in value.split(",")]
    return [value] if isinstance(value, int | float) else value


def terms_by_name(value: object) -> object:
    """``info_nce``, ``[info_nce, {mlm: 0.1}]`` and ``{info_nce: 1.0}`` as settings by name."""
    if isinstance(value, str):
        value = [value]
    if isinstance(value, list):
        terms: dict[Any, Any] = {}
        for item in value:
            one = {item: {}} if isinstance(item, str) else item
            if not isinstance(one, dict):
                return value  # pydantic says what is expected
            if twice := set(one) & set(terms):
                raise ValueError(f"{twice.pop()} is named twice")
            terms |= one
        value = terms
    if not isinstance(value, dict):
        return value
    short = (int, float, str)
    return {k: {"weight": v} if isinstance(v, short) else v for k, v in value.items()}


def _weights_by_name(value: object) -> object:
    """``spans`` and ``[spans, {title: 0.5}]`` as weights by name."""
    if isinstance(value, str):
        return {value: 1.0}
    if not isinstance(value, list):
        return value
    weights: dict[Any, Any] = {}
    for item in value:
        one = {item: 1.0} if isinstance(item, str) else item
        if not isinstance(one, dict):
            return value  # pydantic says what is expected
        weights |= one
    return weights


def temperature_from_number(value: object) -> object:
    """The section that ``temperature: 0.05`` is short for."""
    return {"start": value} if isinstance(value, int | float | str) else value


def objective_from_terms(value: object) -> object:
    """The section that ``objective: info_nce`` is short for."""
    return {"terms": value} if isinstance(value, str | list) else value


Seed = Annotated[int, Field(ge=0, lt=2**32)]
PathText = Annotated[str, Field(min_length=1), AfterValidator(_path)]


class _Section(BaseModel):
    # The docstring below a setting is its description in the JSON schema and `simcse settings`.
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True
    )

    @model_validator(mode="after")
    def _text_is_sound(self) -> Self:
        """No text, wherever it stands, that a file, a tokenizer or the system could not take."""
        for key, text in _texts(dict(self), ""):
            if "\0" in text:
                raise ValueError(f"{key}: {text!r} has a NUL character")
            if _SURROGATE.search(text):
                raise ValueError(f"{key}: {text!r} is not valid Unicode text")
        return self


_SURROGATE = re.compile("[\ud800-\udfff]")


def _texts(value: object, key: str) -> Iterator[tuple[str, str]]:
    """Key and text of every text in plain values; sections check their own."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict | list):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(name, str):
                yield key or name, name
            yield from _texts(inner, f"{key}.{name}" if key else str(name))


SEPARATOR = r"^[^\r\n\"]$"
Separator = Annotated[str, Field(pattern=SEPARATOR)]
Encoding = Literal["utf-8", "latin-1", "cp1252"]
EMBEDDED_TEXT = "python-docs"
"""The documents that come with the package."""


def _holds_documents(name: object) -> bool:
    if not isinstance(name, str) or "\0" in name:
        return False
    path = Path(name)
    return name == EMBEDDED_TEXT or path.suffix.lower() in (".md", ".markdown") or path.is_dir()


COLUMNS: dict[str, tuple[int, int | None, str]] = {
    "sentences": (1, 1, "one column"),
    "pairs": (2, None, "two columns or more: anchor, positive, hard negatives"),
    "nli": (3, 3, "three columns: premise, hypothesis, label"),
    "labelled": (2, 2, "two columns: text, label"),
    "documents": (1, 2, "one column or two: text, or title and text"),
    # Of the user's own tests.
    "scored": (3, 3, "three columns: text, text, grade or label"),
    "corpus": (2, 3, "_id and text, with or without title"),
}
"""Fewest and most columns of a form, in words."""


class OwnTest(_Section):
    """A test on the user's own data."""

    kind: OwnKind
    """``graded`` (two texts and a grade), ``pairs`` (two texts and whether they mean the same),
    ``retrieval`` (a folder in BEIR's layout), ``labelled`` (text and label); docs/own_tests.md."""
    file: PathText
    """A csv, tsv, jsonl or parquet file (also .gz); for ``retrieval`` the folder."""
    name: Annotated[str, Field(min_length=1, max_length=100)] | None = None
    """What scores are called by; ``null`` is the kind and the name of the file."""
    columns: Annotated[list[str], BeforeValidator(_list_from_one)] = []
    """Its columns, in the order of the kind; needed where the names do not tell."""
    names: Annotated[list[str], BeforeValidator(_list_from_one)] = []
    """Names of the columns of a csv or tsv file that has no header."""
    quotes: bool = True
    """Whether quotes enclose fields of a csv or tsv file."""
    separator: Separator | None = None
    """The character between the fields of a csv or tsv file, where it is another than usual."""
    encoding: Encoding = "utf-8"
    """Character encoding of the file."""

    @property
    def title(self) -> str:
        """What its scores are called by."""
        return self.name or f"{self.kind}:{Path(self.file).absolute().name}"

    @property
    def form(self) -> str:
        """Key of :data:`COLUMNS`."""
        return "scored" if self.kind in ("graded", "pairs") else self.kind

    @model_validator(mode="after")
    def _is_its_own(self) -> OwnTest:
        if self.kind == "retrieval":
            if self.columns or self.names:
                raise ValueError("columns: a retrieval test has those of BEIR's layout")
        elif self.columns and len(self.columns) != COLUMNS[self.form][0]:
            what = COLUMNS[self.form][2]
            raise ValueError(f"columns: {self.kind} takes {what}, got {len(self.columns)}")
        name = self.title.lower()
        taken = (*get_args(TaskName), *TASK_ALIASES, *_TAKEN)
        if name in map(str.lower, taken) or name.startswith((MTEB, "average of ")):
            raise ValueError(
                f"name: {self.name} is the name of another test; choose one of its own"
            )
        return self


# Names under which scores stand beside those of tasks.
_TAKEN = ("sts", "transfer", "geometry", "python-docs-dev", "documents-dev")


def own_test_from_text(value: object) -> object:
    """``graded:pairs.csv`` as the mapping that it is short for."""
    if isinstance(value, str):
        kind, colon, file = value.partition(":")
        if colon and kind in get_args(OwnKind):
            return {"kind": kind, "file": file}
    return value


def check_titles(tests: Iterable[object]) -> None:
    """Make sure that no two tests of the user's own would be scored under one name.

    Raises:
        UserError: They would.
    """
    found: dict[str, OwnTest] = {}
    for test in tests:
        if isinstance(test, OwnTest) and found.setdefault(test.title, test) != test:
            raise UserError(f"two tests are called {test.title!r}; give one of them another name")


def _is_own_test(value: object) -> str:
    return "[own]" if isinstance(value, dict | OwnTest) else "[name]"


# Tags in brackets, as pydantic's own "[key]", are left out of messages.
ScoredTask = Annotated[
    Annotated[
        str,
        AfterValidator(_scored_task),
        WithJsonSchema({"anyOf": [{"enum": get_args(TaskName)}, _MTEB_AS_TEXT, _OWN_AS_TEXT]}),
        Tag("[name]"),
    ]
    | Annotated[OwnTest, Tag("[own]")],
    Discriminator(_is_own_test),
    BeforeValidator(own_test_from_text),
]
"""A task of ours, one of mteb with its prefix, or a test on the user's own data."""
DevTask = Annotated[
    Annotated[
        DevTaskName,
        WithJsonSchema({"anyOf": [{"enum": get_args(DevTaskName)}, _OWN_AS_TEXT]}),
        Tag("[name]"),
    ]
    | Annotated[OwnTest, Tag("[own]")],
    Discriminator(_is_own_test),
    BeforeValidator(own_test_from_text),
]
"""What may choose checkpoints."""


class LoraConfig(_Section):
    """Low-rank adapters: the encoder's own weights stay as they are (needs the extra ``lora``)."""

    rank: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Rank of the two matrices that are trained beside a layer's weights (LoRA,
    https://arxiv.org/abs/2106.09685); ``null`` trains the encoder's own weights, without
    adapters."""
    alpha: Annotated[int, Field(ge=1)] = 32
    """What an adapter adds is multiplied by ``alpha / rank``."""
    dropout: Annotated[Number, Field(ge=0, lt=1)] = 0.05
    """Dropout of what goes into an adapter."""
    targets: Annotated[list[str], BeforeValidator(_list_from_one)] = []
    """Names of the layers that get an adapter, such as ``[q_proj, v_proj]``; ``[]`` is every linear
    layer."""

    @model_validator(mode="after")
    def _has_a_rank(self) -> LoraConfig:
        own = {"alpha": 32, "dropout": 0.05, "targets": []}
        for name, default in own.items():
            if self.rank is None and getattr(self, name) != default:
                raise ValueError(f"{name} has no meaning without rank")
        return self


class EncoderConfig(_Section):
    """Which pre-trained encoder, and how its token states become one sentence embedding."""

    name: PathText = "mini-bert"
    """Hugging Face name or local folder; ``mini-bert``, a language model, and ``mini-distilled``, a
    sentence encoder, come with the package."""
    revision: str | None = None
    """Branch, tag or commit of a Hub encoder."""
    trust_remote_code: bool = False
    """Let the encoder run code that comes with it on this machine."""
    pooling: Pooling | None = None
    """``cls`` is the first position of the last layer, ``last_token`` the last one, where a
    language model has seen the whole text (an end-of-text token, which the tokenizer is made to
    append), ``weighted_mean`` the mean over tokens with weights 1, 2, 3, … (SGPT),
    ``avg_first_last`` the mean over tokens of the average of the first and the last layer,
    ``pooler`` the first position through the checkpoint's own dense layer with tanh. ``null`` is
    what a sentence-transformers model has, which also keeps its other modules, prompts and
    settings, and ``mean`` for other encoders."""
    attention: Attention = "own"
    """``bidirectional`` lets every token of a language model see those after it too (LLM2Vec);
    saved with the model. ``own`` is what the encoder has."""
    projection: Literal["none", "train_only", "always"] = "none"
    """A dense layer with tanh after pooling: left out, used by the loss only and dropped from the
    exported model (SimCSE's ``mlp_only_train``), or part of the exported model."""
    dropout: Annotated[Number, Field(ge=0, lt=1)] | None = None
    """Overrides every dropout probability of the encoder; ``null`` keeps its own."""
    lora: LoraConfig = LoraConfig()
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the encoder's own weights where adapters are trained, which themselves are float32;
    ``bfloat16`` halves their memory."""
    towers: Literal["one", "two"] = "one"
    """``two``: anchors and positives get encoders of their own, starting from the same weights, for
    pairs from two sources; saved as sentence-transformers' Router (``encode_query``,
    ``encode_document``)."""
    prompts: Prompts = {}
    """Text before every input, such as ``{query: "query: ", document: "passage: "}``: anchors get
    that of queries, all others that of documents. Saved with the model, whose ``encode_query`` and
    ``encode_document`` put it there. A model that has prompts is trained with them; these replace
    its own, and ``""`` turns one off."""

    @model_validator(mode="after")
    def _adapters_fit(self) -> EncoderConfig:
        if self.dtype != "float32" and not self.has_adapters:
            raise ValueError(
                "dtype: bfloat16 is for weights that are not trained, with lora.rank; to train in "
                "mixed precision set training.precision"
            )
        if self.dtype != "float32" and self.projection != "none":
            raise ValueError("projection: needs encoder.dtype=float32; allowed here is none")
        if self.has_adapters and self.towers == "two":
            raise ValueError("lora: needs one encoder for all texts, got towers two")
        return self

    @property
    def has_adapters(self) -> bool:
        """Whether adapters are trained in the place of the encoder's own weights."""
        return self.lora.rank is not None


class DataConfig(_Section):
    """Training text: one data set."""

    train: Annotated[list[PathText], BeforeValidator(_list_from_one)] = Field(
        default=["python-docs"], min_length=1
    )
    """``python-docs`` (the library reference of Python, which comes with the package), files or
    globs of txt, csv, tsv, jsonl or parquet (also .gz), folders of documents, or one Hub data set
    by name."""
    form: Literal["sentences", "pairs", "nli", "labelled", "documents"] = "sentences"
    """``sentences``: one text a row, its positive is itself. ``pairs``: anchor, positive, and any
    number of hard negatives. ``nli``: premise, hypothesis, label; becomes triplets. ``labelled``:
    text and label (or group id); rows that share it are positives. ``documents``: files or folders
    of txt and md, or tables with a title (if any) and a text; see ``positives``. Where it is left
    out: ``documents`` for ``python-docs``, folders and Markdown, else ``sentences``."""
    columns: Annotated[list[str], BeforeValidator(_list_from_one)] = []
    """Columns of the form, in its order; needed where the names do not tell. ``title+text`` joins
    two by a space."""
    names: Annotated[list[str], BeforeValidator(_list_from_one)] = []
    """Names of the columns of csv and tsv files that have no header."""
    quotes: bool = True
    """Whether quotes enclose fields of csv and tsv files; ``false`` takes them as they stand."""
    separator: Separator | None = None
    """The character between the fields of csv and tsv files, such as ``;``; ``null`` is a comma in
    csv and a tab in tsv files."""
    encoding: Encoding = "utf-8"
    """Character encoding of txt, csv, tsv and jsonl files."""
    incomplete: Literal["skip", "refuse"] = "skip"
    """Rows of which a text or a label is empty and others are not: counted and left out, or refused
    with their line. Rows of which all is empty are always left out."""
    positives: Annotated[
        dict[PositiveKind, PositiveNumber],
        BeforeValidator(_weights_by_name),
    ] = Field(default={"spans": 1.0}, min_length=1)
    """Of documents, and how often each kind is drawn: ``dropout`` (a sentence is its own positive),
    ``spans`` (two runs of sentences of one passage), ``title`` (the title and a run of sentences).
    Such as ``spans``, ``[spans, title]`` or ``{spans: 0.8, dropout: 0.2}``."""
    passage: Annotated[int, Field(ge=2, le=10_000)] = 10
    """Sentences of a document that make a row, at most: positives are from one passage."""
    held_out: Annotated[Number, Field(ge=0, le=0.5)] = 0.1
    """Share of the documents that training never sees, by a hash of their content, near-duplicates
    together: half of it for dev, half for test."""
    language: Annotated[str, Field(pattern=r"^[a-z]{2,3}(-[A-Za-z]+)?$")] = "en"
    """ISO 639 code of the documents' language, for splitting them into sentences; a language that
    the library (sentencex) does not know is split as English is."""
    split: str = "train"
    """Split of a Hub data set."""
    revision: str | None = None
    """Branch, tag or commit of a Hub data set."""
    duplicates: Literal["drop", "keep"] = "drop"
    """Rows that repeat an earlier one, in all their texts and the label."""
    max_rows: Count | None = None
    """Train on this many rows, drawn once with ``seed``; ``null`` takes all."""
    max_length: Annotated[Count, Field(ge=3)] = 32
    """Longest training text in tokens, special tokens included; encoding is not bound by it."""
    prompts: Prompts | None = None
    """Of this set, in training only, in place of those of the encoder (``encoder.prompts``)."""
    cache: PathText | None = None
    """Folder of the tokenised text; ``null`` uses the user's cache folder."""
    weight: PositiveNumber | None = None
    """Of several sets: share of the batches, relative to the weights of the others; ``null`` in all
    of them draws each row once an epoch."""

    @property
    def title(self) -> str:
        """What a set is called by."""
        return ", ".join(self.train)

    @model_validator(mode="before")
    @classmethod
    def _form_by_name(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("form") is not None:
            return values
        names = _list_from_one(values.get("train", EMBEDDED_TEXT))
        known = isinstance(names, list) and all(map(_holds_documents, names))
        return {**values, "form": "documents" if known else "sentences"}

    @model_validator(mode="after")
    def _columns_fit(self) -> DataConfig:
        least, most, what = COLUMNS[self.form]
        if len(set(self.columns)) < len(self.columns):
            raise ValueError(f"columns: one is named twice in {', '.join(self.columns)}")
        own = {"positives": {"spans": 1.0}, "passage": 10, "language": "en"}
        if self.form != "documents":
            for name, default in own.items():
                if getattr(self, name) != default:
                    raise ValueError(f"{name} has no meaning with form {self.form}")
        if self.columns and not least <= len(self.columns) <= (most or len(self.columns)):
            hint = "; a list is written [a, b]" * ("," in "".join(self.columns))
            found = len(self.columns)
            raise ValueError(f"columns: form {self.form} takes {what}, got {found}{hint}")
        return self


def _is_several(value: object) -> str:
    return "[sets]" if isinstance(value, list) else "[set]"


DataSets = Annotated[
    Annotated[DataConfig, Tag("[set]")]
    | Annotated[list[DataConfig], Field(min_length=1), Tag("[sets]")],
    Discriminator(_is_several),
]


class ViewConfig(_Section):
    """What is done to the token ids of one view; dropout comes on top. Composable."""

    repeat: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    """Word repetition: up to this share of the tokens (and at least up to two) is doubled, so that
    views differ in length (ESimCSE, https://arxiv.org/abs/2109.04380; there 0.32)."""
    cutoff: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    """Share of the tokens that attention does not see (ConSERT's token cutoff,
    https://arxiv.org/abs/2105.11741; there 0.15)."""
    shuffle: bool = False
    """Tokens in random order (ConSERT's token shuffling)."""
    template: str | None = None
    """Words around the text, ``{}`` in its place (after PromptBERT,
    https://arxiv.org/abs/2201.04337)."""
    dropout: Annotated[Number, Field(ge=0, lt=1)] | None = None
    """Dropout of this view alone (SCD's two rates, https://arxiv.org/abs/2203.07847; there 0.05 and
    0.15); costs a forward pass a view."""

    @model_validator(mode="after")
    def _one_place(self) -> ViewConfig:
        if self.template is not None and self.template.count("{}") != 1:
            raise ValueError(f"template: {self.template!r} needs {{}} once, in the text's place")
        return self


class TemperatureConfig(_Section):
    """The number that divides cosine similarities: fixed, scheduled, or learned."""

    start: Temperature = 0.05
    """The temperature, or where its schedule begins."""
    schedule: Literal["fixed", "linear", "cosine", "learnable"] = "fixed"
    """``linear`` and ``cosine`` go from ``start`` to ``end`` over the run; ``learnable`` is a
    parameter (its logarithm), kept between ``minimum`` and ``maximum``."""
    end: Temperature | None = None
    """Where a ``linear`` or ``cosine`` schedule ends."""
    minimum: Temperature = 0.01
    """Lower bound of a learnable temperature."""
    maximum: Temperature = 1.0
    """Upper bound of a learnable temperature."""

    @model_validator(mode="after")
    def _complete(self) -> TemperatureConfig:
        scheduled = self.schedule in ("linear", "cosine")
        if scheduled != (self.end is not None):
            raise ValueError(
                f"schedule {self.schedule} needs an end"
                if scheduled
                else f"end has no meaning with schedule {self.schedule}; use linear or cosine"
            )
        if self.minimum > self.maximum:
            raise ValueError(f"minimum {self.minimum} is above maximum {self.maximum}")
        if self.schedule == "learnable" and not self.minimum <= self.start <= self.maximum:
            raise ValueError(
                f"start {self.start} is not between minimum {self.minimum} and maximum "
                f"{self.maximum}"
            )
        return self


class TermConfig(_Section):
    """One term of the objective. Its other settings are its own: docs/objectives.md lists them."""

    model_config = ConfigDict(extra="allow")

    weight: Annotated[Number, Field(ge=0)] = 1.0
    """Of the term in the sum."""


class ObjectiveConfig(_Section):
    """What embeddings are trained for: a weighted sum of terms, usually one."""

    terms: Annotated[dict[str, TermConfig], BeforeValidator(terms_by_name)] = Field(
        default={"info_nce": TermConfig()}, min_length=1
    )
    """One name, weights such as ``[{info_nce: 1.0}, {mlm: 0.1}]``, or settings by name:
    ``{dino: {weight: 1.0, prototypes: 512}}``. ``objective: info_nce`` is short for ``objective:
    {terms: info_nce}``, on the command line too. ``my_module:MyObjective`` is a class of your own
    (docs/extending.md)."""
    temperature: Annotated[TemperatureConfig, BeforeValidator(temperature_from_number)] = (
        TemperatureConfig()
    )
    """A number, or a section; shared by all terms that have a temperature. A config with ``clip``
    that names none has CLIP's: learnable from 0.07."""
    mask_identical: bool = True
    """Leave out negatives with the text or the label of the anchor or of its positive; ``sup_con``
    goes by labels alone."""
    teacher: PathText | None = None
    """For ``distill_l2`` and ``distill_similarity``: any sentence-transformers model."""
    teacher_revision: str | None = None
    """Branch, tag or commit of a Hub teacher."""
    guide: PathText | None = None
    """Leave out negatives that this sentence-transformers model finds closer to the anchor than
    its positive is, less ``guide_margin`` (GISTEmbed, https://arxiv.org/abs/2402.16829)."""
    guide_revision: str | None = None
    """Branch, tag or commit of a Hub guide."""
    guide_margin: Annotated[Number, Field(ge=0, le=2)] = 0.0
    """How far below the positive's a negative's similarity has to be; where a text is its own
    positive that is 1, so ``0.1`` leaves out similarities above 0.9."""
    guide_margin_kind: Literal["absolute", "relative"] = "absolute"
    """``relative`` takes the margin as a share of the positive's similarity."""
    dims: Annotated[list[Dims], BeforeValidator(_number_list)] = []
    """Matryoshka: the loss is summed over embeddings cut to their first so many numbers and
    normalised, such as ``256,128,64``, so that each of these sizes can be used (Kusupati et al.
    2022, https://arxiv.org/abs/2205.13147). The full width is a size like any other; ``[]`` trains
    it alone."""
    dim_weights: Annotated[list[PositiveNumber], BeforeValidator(_weight_list)] = []
    """Of the sizes in ``dims``, in their order; ``[]`` is 1 for each."""

    @model_validator(mode="after")
    def _sizes_differ(self) -> ObjectiveConfig:
        if repeated := [size for size in self.dims if self.dims.count(size) > 1]:
            raise ValueError(f"dims: {repeated[0]} is given twice")
        if self.dim_weights and len(self.dim_weights) != len(self.dims):
            raise ValueError(f"dim_weights: {len(self.dim_weights)} for {len(self.dims)} dims")
        return self

    @model_validator(mode="after")
    def _some_weight(self) -> ObjectiveConfig:
        if sum(term.weight for term in self.terms.values()) == 0:
            raise ValueError("terms: the weights sum to 0")
        if self.guide is None and self.guide_margin:
            raise ValueError("guide_margin has no meaning without guide")
        return self

    @property
    def helpers(self) -> dict[str, tuple[str, str | None]]:
        """Name and revision of the other models that look at the training text."""
        models = {
            "teacher": (self.teacher, self.teacher_revision),
            "guide": (self.guide, self.guide_revision),
        }
        return {kind: (name, revision) for kind, (name, revision) in models.items() if name}


class TrainingConfig(_Section):
    """The optimisation: AdamW with linear decay to zero."""

    batch_size: Count = 64
    """Rows a step, each contrasted with the others; with ``data.form=labelled`` half as many
    pairs."""
    mini_batch_size: Annotated[int, Field(ge=1)] | None = None
    """Gradient caching: texts embedded at a time, for batches larger than memory; same gradients,
    about a third more time."""
    activation_checkpointing: bool = False
    """Compute the activations of each layer again in the backward pass instead of keeping them:
    less memory, the same gradients, about a third more time."""
    batching: Literal["random", "length_grouped"] = "length_grouped"
    """``length_grouped`` fills a batch with sentences of similar length (docs/studies/length.md),
    less closely after the first epoch, so that batches do not repeat (docs/performance.md)."""
    epochs: Annotated[PositiveNumber, Field(le=1_000_000)] = 1.0
    """Passes over the training rows; may be a fraction."""
    steps: Count | None = None
    """Optimiser steps; when given it replaces ``epochs``."""
    learning_rate: PositiveNumber = 3e-5
    """Highest learning rate; after the warmup it falls linearly to 0."""
    warmup: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    """Share of the steps with linearly rising learning rate."""
    weight_decay: Annotated[Number, Field(ge=0)] = 0.0
    """AdamW's weight decay of matrices; biases, norms and temperatures do not decay."""
    max_grad_norm: Annotated[Number, Field(ge=0)] = 1.0
    """Gradient norm is clipped to this; 0 turns clipping off."""
    precision: Precision = "auto"
    """Mixed precision of the forward pass; weights stay float32. ``auto`` is bfloat16 where the
    processor or GPU has instructions for it, else float32; the run's config holds which it is, and
    a resumed run keeps it."""
    cpu_kernels: bool = True
    """On a CPU, draw dropout faster than PyTorch does; and with CLS pooling, on any device, leave
    out of the last layer what only other tokens need (docs/performance.md). ``false`` turns both
    off: the same results but for rounding, with other random numbers for dropout."""
    sharding: Literal["none", "full"] = "none"
    """Of several processes each holds the whole encoder (``none``: DistributedDataParallel), or a
    share of its weights, gradients and optimiser state, for encoders that do not fit (``full``:
    FSDP2)."""
    log_every: Count = 10
    """Steps between two lines of the log."""
    keep_checkpoints: Count = 2
    """At least this many of the newest checkpoints are kept while training, and the best one."""
    report_to: Annotated[list[str], BeforeValidator(_list_from_one)] = []
    """Trackers of accelerate, such as ``tensorboard``, ``wandb``, ``trackio``, ``mlflow``."""


class EvaluationConfig(_Section):
    """What is measured, on what, and when."""

    data: PathText | None = None
    """Folder in SentEval's layout (it holds ``STS/`` and ``SICK/``), for the STS tasks."""
    dev: DevTask = "pairs"
    """Chooses the best checkpoint: the graded pairs of the package (``pairs``), retrieval among
    held-out documents (of the training text, ``documents``, or of the shipped ones,
    ``python-docs``), the dev part of STS-B, or a test of your own (``graded:FILE``)."""
    every: Count = 250
    """Steps between two dev scores, each with a checkpoint."""
    tasks: Annotated[list[ScoredTask], BeforeValidator(_task_list)] = ["pairs"]
    """Scored before and after training, with the best checkpoint; none of them chooses anything.
    ``mteb:NAME`` is any task or benchmark of mteb; ``evaluation.tasks=pairs,mteb:STS13`` names
    two. ``graded:FILE``, ``pairs:FILE``, ``retrieval:FOLDER`` and ``labelled:FILE`` are tests of
    your own, short for ``{kind: graded, file: FILE}`` (docs/own_tests.md)."""
    raw_poolings: Annotated[list[Pooling], BeforeValidator(_list_from_one)] = [
        "cls", "mean", "avg_first_last",
    ]  # fmt: skip
    """Poolings of the untrained encoder to score for comparison; ``[]`` skips it. A
    sentence-transformers model is scored once, as it encodes by itself (``own``)."""
    batch_size: Count = 128
    """Texts in one forward pass while scoring."""
    precision: Precision = "float32"
    """Of all scoring; bfloat16 is faster and moves scores by a few hundredths
    (docs/performance.md)."""

    @model_validator(mode="after")
    def _folder_given(self) -> EvaluationConfig:
        tests = (*self.tasks, self.dev)
        check_titles(tests)
        names = [test for test in tests if isinstance(test, str) and not test.startswith(MTEB)]
        sts = [name for name in names if name not in ("pairs", "python-docs", "documents")]
        if sts and self.data is None:
            raise ValueError(
                f"{', '.join(dict.fromkeys(sts))} needs data=FOLDER, a folder in SentEval's layout"
            )
        return self


HUB_LICENSE = r"^[A-Za-z0-9][A-Za-z0-9.+-]{0,63}$"
HUB_MODEL = r"^([A-Za-z0-9][\w.-]{0,95}/)?[A-Za-z0-9][\w.-]{0,95}$"
HubId = Annotated[str, Field(pattern=HUB_LICENSE)]


class HubConfig(_Section):
    """What the Hugging Face Hub is told; nothing here changes the model.

    A token is never a setting: it comes from ``HF_TOKEN`` or from ``hf auth login``.
    """

    push_checkpoints: Annotated[str, Field(pattern=HUB_NAME)] | None = None
    """``user/name`` of a private repository whose branch ``checkpoints`` gets the model with every
    checkpoint; training goes on when the Hub does not answer."""
    license: HubId | None = None
    """Licence of the weights, such as ``apache-2.0``, for the model card; ``null`` is that of the
    encoder, if its own card names one."""
    base_model: Annotated[str, Field(pattern=HUB_MODEL)] | None = None
    """Name on the Hub of an encoder from a folder, for the model card and for adapters that are
    exported alone; ``null`` is what the card of that encoder names as its base model."""
    data_license: str | None = None
    """Licence of the training text, for the model card."""
    language: Annotated[list[HubId], BeforeValidator(_list_from_one)] = []
    """ISO 639 codes of the text, for the model card; by default ``data.language``, if it is not the
    default."""
    widget: Annotated[list[str], BeforeValidator(_list_from_one)] = []
    """Sentences of your own for the widget of the model's page: the first is compared with the
    others. Training sentences are never taken."""

    @model_validator(mode="after")
    def _widget_compares(self) -> HubConfig:
        if len(self.widget) == 1:
            raise ValueError("widget: needs two sentences or more, the first is compared with them")
        return self


class Config(_Section):
    """One training run; every field has a default, so an empty file is a valid config."""

    output: PathText | None = None
    """Run folder; ``null`` means ``outputs/<name of the config file>``."""
    seed: Seed = 42
    """Seed of weights that are new, dropout, batches and row sampling."""
    seeds: Annotated[list[Seed], BeforeValidator(_number_list)] = []
    """Several seeds, such as ``seeds=0,1,2``: a run each in ``<output>/seed-<n>``, and their mean,
    spread and interval in ``<output>/summary.json``; takes the place of ``seed``."""
    encoder: EncoderConfig = EncoderConfig()
    data: DataSets = DataConfig()
    """One data set, or a list of several; a batch is from one of them (docs/training.md)."""
    views: Annotated[list[ViewConfig], Field(min_length=2, max_length=2)] = [
        ViewConfig(), ViewConfig(),
    ]  # fmt: skip
    """The two views of a sentence; for pairs the first is of anchors, the second of all others."""
    objective: Annotated[ObjectiveConfig, BeforeValidator(objective_from_terms)] = ObjectiveConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    hub: HubConfig = HubConfig()

    @property
    def sets(self) -> list[DataConfig]:
        """The data sets, one or several."""
        return self.data if isinstance(self.data, list) else [self.data]

    def settings(self) -> dict[str, Any]:
        """Every setting by its dotted key, in declaration order."""
        return dict(leaves(self.model_dump()))

    @model_validator(mode="after")
    def _negatives_exist(self) -> Config:
        if self.training.batch_size < 2:
            raise ValueError(
                "training.batch_size: 1 leaves no in-batch negatives, so the loss is always 0; "
                "allowed is 2 or more"
            )
        return self

    @model_validator(mode="after")
    def _data_fits(self) -> Config:
        forms = [data.form for data in self.sets]
        got = ", ".join(dict.fromkeys(forms))
        shares = {data.held_out for data in self.sets if data.form == "documents"}
        if "documents" in (*self.evaluation.tasks, self.evaluation.dev):
            if not shares:
                names = [name for data in self.sets for name in data.train if name != EMBEDDED_TEXT]
                absent = [n for n in names if not (glob.has_magic(n) or Path(n).exists())]
                hint = f" ({absent[0]!r} is no file or folder here)" if absent else ""
                raise ValueError(
                    f"evaluation: documents needs data.form=documents, got {got}{hint}; for other "
                    "forms set evaluation.dev and evaluation.tasks, such as pairs"
                )
            if not sum(shares):
                raise ValueError("evaluation: documents needs data.held_out above 0")
        if len(shares) > 1:  # a document of two sets would be on two sides
            raise ValueError("data.held_out must be the same for all sets of documents")
        if len({data.weight is None for data in self.sets}) > 1:
            raise ValueError("data.weight: give one to each of the sets, or to none")
        if self.encoder.towers == "two" and {*forms} != {"pairs"}:
            raise ValueError(f"encoder.towers: two needs data.form=pairs, got {got}")
        if self.objective.teacher is not None and {*forms} != {"sentences"}:
            raise ValueError(f"objective.teacher needs data.form=sentences, got {got}")
        if self.objective.guide is not None and "documents" in forms:
            raise ValueError(
                "objective.guide needs texts that stay the same, and those of data.form=documents "
                "are drawn anew in each epoch"
            )
        if "labelled" in forms and self.training.batch_size % 2:
            raise ValueError("training.batch_size must be even with data.form=labelled")
        if "labelled" in forms and self.training.batch_size < 4:
            raise ValueError(
                "training.batch_size: 2 rows are one labelled pair, which leaves no in-batch "
                "negatives; allowed is 4 or more"
            )
        return self

    @model_validator(mode="after")
    def _seeds_differ(self) -> Config:
        if repeated := [seed for seed in self.seeds if self.seeds.count(seed) > 1]:
            raise ValueError(f"seeds: {repeated[0]} is given twice; a seed counts once")
        return self


def _sections(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield f"{prefix}{name}"
            yield from _sections(field.annotation, f"{prefix}{name}.")


SECTIONS = frozenset(_sections(Config)) | {"data"}
"""Dotted keys of sections, such as ``training`` and ``objective.temperature``."""


def leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of nested sections, and of lists of them, by its dotted key."""
    for key, value in values.items():
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            value = {str(number): item for number, item in enumerate(value)}
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
