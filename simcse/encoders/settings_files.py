"""What a model's JSON files may hold, checked before the libraries act on them.

The libraries take whatever type stands there; what goes wrong then says neither file nor key. Only
keys that decide how a model is loaded are checked, and others are allowed.
"""

from __future__ import annotations

import importlib.util
import json
import re
import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    RootModel,
    ValidationError,
    model_validator,
)
from tokenizers import Tokenizer
from transformers.activations import ACT2FN

from simcse.config.reading import problems
from simcse.errors import UserError, first_line

ADAPTER = "adapter_config.json"
MODULES = "modules.json"
ROUTER = "router_config.json"
TOKENIZER = "tokenizer.json"

_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*")  # of folders below a folder
_SURROGATE = re.compile("[\ud800-\udfff]")
_MOST = 10**12  # of anything that is counted
# What architectures call their sizes, and their activations.
_SIZES = {
    "d_ff", "d_kv", "d_model", "dim", "emb_dim", "head_dim", "hidden_dim", "hidden_size",
    "intermediate_size", "max_position_embeddings", "n_embd", "n_head", "n_heads", "n_layer",
    "n_layers", "n_positions", "num_attention_heads", "num_heads", "num_hidden_layers",
    "num_key_value_heads", "num_layers", "vocab_size",
}  # fmt: skip
_ACTIVATIONS = {"dense_act_fn", "hidden_act", "hidden_activation"}  # those of transformers


def _is_token(value: Any) -> Any:
    text = value.get("content") if isinstance(value, dict) else value
    if not (value is None or isinstance(text, str)):
        raise ValueError(f"should be a token as text, got {reprlib.repr(value)}")
    return value


def _is_text(value: str) -> str:
    if not value.isascii() and _SURROGATE.search(value):
        raise ValueError(f"should be valid Unicode text, got {reprlib.repr(value)}")
    return value


def _are_distinct(modules: list[_Module]) -> list[_Module]:
    names = [module.name for module in modules]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"two modules are called {twice[0]!r}")
    return modules


def _is_adapter(value: str) -> str:
    if importlib.util.find_spec("peft"):
        from peft import PeftType

        if value not in set(PeftType):
            raise ValueError(f"should be a kind of adapter, such as LORA, got {value!r}")
    return value


def _is_at_hand(name: str | None) -> str | None:
    if name and Path(name).is_absolute() and not Path(name).is_dir():
        raise ValueError(f"{name} is no folder here")
    return name


def _is_mode(value: Any) -> Any:
    names = value if isinstance(value, list) else [value]
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"should be the name of a pooling, got {reprlib.repr(value)}")
    return value


def _is_dtype(name: str) -> str:
    if name != "auto" and not isinstance(getattr(torch, name, None), torch.dtype):
        raise ValueError(f"should be a type of numbers, such as float32, got {name!r}")
    return name


Size = Annotated[int, Field(gt=0, le=_MOST)]
Token = Annotated[Any, AfterValidator(_is_token)]
Dtype = Annotated[str, AfterValidator(_is_dtype)] | None


class _Settings(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True, protected_namespaces=())


class _Network(_Settings):
    """``config.json`` of transformers, whose own classes check the types of further keys."""

    model_type: str = ""
    architectures: list[str] | None = None
    auto_map: dict[str, Any] | None = None
    dtype: Dtype = None
    torch_dtype: Dtype = None

    @model_validator(mode="before")
    @classmethod
    def _whatever_the_architecture(cls, values: Any) -> Any:
        for key, value in values.items() if isinstance(values, dict) else ():
            if value is None or isinstance(value, list):  # some have one for each layer
                continue
            counted = isinstance(value, int) and not isinstance(value, bool)
            if key in _SIZES and not (counted and 0 < value <= _MOST):
                raise ValueError(f"{key}: should be a positive number, got {reprlib.repr(value)}")
            known = isinstance(value, str) and (value in ACT2FN or "auto_map" in values)
            if key in _ACTIVATIONS and not known:
                expected = "the name of an activation, such as 'gelu'"
                raise ValueError(f"{key}: should be {expected}, got {reprlib.repr(value)}")
        return values

    @model_validator(mode="after")
    def _pads_with_a_token(self) -> Self:
        padding, size = ((self.model_extra or {}).get(k) for k in ("pad_token_id", "vocab_size"))
        if isinstance(padding, int) and isinstance(size, int) and padding >= size:
            raise ValueError(f"pad_token_id: {padding} is none of vocab_size {size}")
        return self


class _Tokenizer(_Settings):
    tokenizer_class: str | None = None
    auto_map: dict[str, Any] | None = None
    model_max_length: Annotated[float, Field(gt=0)] | None = None
    padding_side: Literal["left", "right"] = "right"
    truncation_side: Literal["left", "right"] = "right"
    do_lower_case: bool | None = None
    added_tokens_decoder: dict[Annotated[str, Field(pattern=r"^[0-9]+$")], Token] = {}
    bos_token: Token = None
    cls_token: Token = None
    eos_token: Token = None
    mask_token: Token = None
    pad_token: Token = None
    sep_token: Token = None
    unk_token: Token = None


class _Object(_Settings):
    """Any JSON object."""


Anything = RootModel[Any]
"""Any JSON: of a file that may be no settings, as all-MiniLM-L6-v2's ``data_config.json``."""


class _Module(_Settings):
    name: str
    path: str
    type: str


class _Modules(
    RootModel[Annotated[list[_Module], Field(min_length=1), AfterValidator(_are_distinct)]]
):
    model_config = ConfigDict(strict=True)


class _Router(_Settings):
    types: dict[str, str]
    structure: dict[str, list[str]]


class _SentenceModel(_Settings):
    """``config_sentence_transformers.json``."""

    model_type: str = ""
    prompts: dict[str, Annotated[str, AfterValidator(_is_text)]] = {}
    default_prompt_name: str | None = None
    similarity_fn_name: str | None = None
    truncate_dim: PositiveInt | None = None
    versions: dict[str, str] = Field({}, alias="__version__")


class _Transformer(_Settings):
    """``sentence_bert_config.json``."""

    max_seq_length: Size | None = None
    do_lower_case: bool | None = None
    model_args: dict[str, Any] = {}
    config_args: dict[str, Any] = {}
    tokenizer_args: dict[str, Any] = {}
    processing_kwargs: dict[str, Any] = {}
    modality_config: dict[str, Any] | None = None
    transformer_task: str | None = None


class _Pooling(_Settings):
    word_embedding_dimension: Size | None = None
    embedding_dimension: Size | None = None
    include_prompt: bool = True
    pooling_mode: Annotated[Any, AfterValidator(_is_mode)] = "mean"

    @model_validator(mode="after")
    def _has_a_width(self) -> Self:
        if self.word_embedding_dimension is None and self.embedding_dimension is None:
            raise ValueError("embedding_dimension: missing")
        return self

    @model_validator(mode="after")
    def _has_a_mode(self) -> Self:
        # Without one the library would take the mean.
        others = (self.model_extra or {}).items()
        modes = [value for key, value in others if key.startswith("pooling_mode_")]
        if modes and not (True in modes and {*map(type, modes)} == {bool}):
            raise ValueError(
                "of the pooling modes, each true or false, at least one has to be true"
            )
        return self


class _Layers(_Settings):
    """Of a WeightedLayerPooling."""

    num_hidden_layers: PositiveInt = 12
    layer_start: Annotated[int, Field(ge=0)] = 4


class _Dense(_Settings):
    in_features: Size
    out_features: Size
    bias: bool = True
    activation_function: str = "torch.nn.modules.activation.Tanh"
    module_input_name: str | None = None
    module_output_name: str | None = None


class _Adapter(_Settings):
    peft_type: Annotated[str, AfterValidator(_is_adapter)] = "LORA"
    base_model_name_or_path: Annotated[str | None, AfterValidator(_is_at_hand)] = None
    r: PositiveInt = 8
    lora_alpha: Annotated[float, Field(ge=0)] = 8
    lora_dropout: Annotated[float, Field(ge=0, le=1)] = 0


class _Shards(_Settings):
    weight_map: dict[str, str]

    @model_validator(mode="after")
    def _stays_in_its_folder(self) -> Self:
        if outside := [name for name in self.weight_map.values() if Path(name).name != name]:
            raise ValueError(f"{outside[0]!r} is no file of its folder")
        return self


_FILES: dict[str, type[BaseModel]] = {
    ADAPTER: _Adapter,
    "config.json": _Network,
    "tokenizer_config.json": _Tokenizer,
    "special_tokens_map.json": _Object,
    MODULES: _Modules,
    ROUTER: _Router,
    "config_sentence_transformers.json": _SentenceModel,
    "sentence_bert_config.json": _Transformer,
}
_OF_MODULES: dict[str, type[BaseModel]] = {
    "Pooling": _Pooling,
    "Dense": _Dense,
    "WeightedLayerPooling": _Layers,
}
"""Of ``config.json`` in the folder of a module, by the name of its class."""


def check(label: str, folder: Path) -> None:
    """Check the known settings in the files of a model and of its modules.

    Args:
        label: Starts every error.
        folder: Of the model.

    Raises:
        UserError: A file is no JSON, or a setting is not of its type.
    """
    parts = list(modules(label, folder)) if (folder / MODULES).is_file() else []
    for part in dict.fromkeys(["", *(path for path, kind in parts if kind not in _OF_MODULES)]):
        for name, record in _FILES.items():
            if (folder / part / name).is_file():
                read(label, folder, str(Path(part, name)), record)
    for part, kind in parts:
        if part and kind in _OF_MODULES:
            read(label, folder, str(Path(part, "config.json")), _OF_MODULES[kind])
        if kind == "StaticEmbedding" and not (folder / part / TOKENIZER).is_file():
            raise UserError(f"{label}: {Path(part, TOKENIZER)}: No such file or directory")
    for path in folder.rglob("*.safetensors.index.json"):
        read(label, folder, str(path.relative_to(folder)), _Shards)


def modules(label: str, folder: Path) -> Iterator[tuple[str, str]]:
    """Folder and class of every module, those of a router and its routes included.

    Raises:
        UserError: As :func:`check`, of the files that list them; or a name, which becomes a path
            when the model is saved, leads out of the folder.
    """

    def plain(path: str) -> str:
        if path and not _NAME.fullmatch(path):
            raise UserError(f"{label}: a module is called {path!r}, which is no plain name")
        return path

    for entry in read(label, folder, MODULES, _Modules):
        yield plain(entry["path"]), entry["type"].rpartition(".")[2]
        router = str(Path(entry["path"], ROUTER))
        if (folder / router).is_file():
            settings = read(label, folder, router, _Router)
            for path, kind in settings["types"].items():
                yield str(Path(entry["path"], plain(path))), kind.rpartition(".")[2]
            yield from ((plain(route), "") for route in settings["structure"])


def read(label: str, folder: Path, name: str, record: type[BaseModel] = _Object) -> Any:
    """The plain values of one JSON file of a model.

    Raises:
        UserError: It is missing, no JSON, or not a ``record``.
    """
    try:
        values = json.loads((folder / name).read_text(encoding="utf-8"))
        record.model_validate(values)
    except ValidationError as error:
        found = "; ".join(problems(error, record))
        raise UserError(f"{label}: {name}: {found}") from error
    except OSError as error:
        raise UserError(f"{label}: {name}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{label}: {name}: not valid JSON: {error}") from error
    return values


def tokenizer_problem(folder: Path) -> str | None:
    """What is wrong with a tokenizer's file, of which the libraries do not tell."""
    for path in folder.rglob(TOKENIZER):
        try:
            Tokenizer.from_file(str(path))
        except Exception as error:  # the library's only kind
            return f"{path.relative_to(folder)}: no tokenizer: {first_line(error)[:200]}"
    return None
