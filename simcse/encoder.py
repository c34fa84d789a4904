"""The sentence encoder: a Hugging Face model, pooling, projection; built, saved, exported.

Only stock sentence-transformers modules are used, so whatever is saved here loads with
``SentenceTransformer(path)``, and needs ``trust_remote_code`` only where the encoder itself does.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Router, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling, WeightedLayerPooling
from torch import nn
from transformers import (
    MODEL_MAPPING,
    AutoConfig,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)

from simcse import hub
from simcse.errors import UserError
from simcse.files import give_usual_mode
from simcse.layout import use_common_layout
from simcse.settings import EncoderConfig
from simcse.settings import Pooling as PoolingName

EMBEDDED_ENCODER = "mini-bert"
# Where the loss finds its embeddings when the projection is for training only; `encode` reads
# "sentence_embedding" and so never sees the projection.
TRAIN_EMBEDDING = "train_embedding"
SENTENCE_EMBEDDING = "sentence_embedding"

# Routes of a model with two towers: anchors are queries, all others documents.
QUERY, DOCUMENT = "query", "document"

_MOST_LAYERS = 1_000

# Of a transformers config: what says nothing about the embeddings.
_VOLATILE = ("_name_or_path", "transformers_version", "dtype", "torch_dtype")

# Dropout of heads that a sentence encoder does not have.
_HEAD_DROPOUT = ("classif", "summary", "qa_", "pooler")


def source_of(name: str) -> str:
    """What the libraries load for an encoder name: the shipped folder for ``mini-bert``."""
    if name == EMBEDDED_ENCODER and not Path(name).exists():
        return str(Path(__file__).parent / "assets" / EMBEDDED_ENCODER)
    return name


def load_tokenizer(config: EncoderConfig) -> PreTrainedTokenizerBase:
    """The encoder's tokenizer.

    Raises:
        UserError: Neither a folder here nor to be had from the Hub, not a fast tokenizer, or no
            padding token.
    """
    tokenizer: PreTrainedTokenizerBase = _load(AutoTokenizer, config)
    if not tokenizer.is_fast:
        raise UserError(f"encoder.name: {config.name} has no fast tokenizer (tokenizers library)")
    if tokenizer.pad_token_id is None:
        raise UserError(f"encoder.name: the tokenizer of {config.name} has no padding token")
    return tokenizer


def build(config: EncoderConfig) -> SentenceTransformer:
    """Build the model to train; its modules are transformer, pooling and the projection if any.

    Raises:
        UserError: The encoder cannot be loaded or has no dropout settings to override.
    """
    settings = _load(AutoConfig, config)
    check_layers(f"encoder.name: {config.name}", settings.to_dict())
    config_kwargs: dict[str, Any] = {}
    if config.dropout is not None:
        names = _dropout_settings(settings.to_dict())
        if not names:
            raise UserError(f"encoder.dropout: {config.name} has no dropout settings to override")
        config_kwargs = dict.fromkeys(names, config.dropout)
    if config.pooling == "avg_first_last":
        config_kwargs["output_hidden_states"] = True
    source = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
    # A masked language model has no pooler: transformers would make one up at random and save it.
    model_class = MODEL_MAPPING.get(type(settings), None)
    has_pooler = inspect.isclass(model_class) and (
        "add_pooling_layer" in inspect.signature(model_class.__init__).parameters
    )
    with _loading(config):
        transformer = Transformer(
            source_of(config.name),
            model_kwargs={
                **source,
                "dtype": torch.float32,  # the default is whatever the checkpoint was stored in
                **({"add_pooling_layer": False} if has_pooler else {}),
            },
            config_kwargs={**source, **config_kwargs},
            processor_kwargs=dict(source),
        )
    modules: list[nn.Module] = [transformer, *pooling_modules(transformer, config.pooling)]
    if config.towers == "two":
        # A copy starts from the same weights and then goes its own way.
        modules = [Router.for_query_document(modules, copy.deepcopy(modules), default_route=QUERY)]
    if config.projection != "none":
        modules.append(_projection(transformer, train_only=config.projection == "train_only"))
    return SentenceTransformer(modules=modules, trust_remote_code=config.trust_remote_code)


def check_layers(name: str, settings: dict[str, Any]) -> None:
    """Refuse a network that no machine would finish building: its size is a number in a file.

    Raises:
        UserError: More layers than any encoder has.
    """
    for key, value in settings.items():
        if key.endswith(("layer", "layers")) and isinstance(value, int) and value > _MOST_LAYERS:
            raise UserError(f"{name}: {key} is {value}; allowed is up to {_MOST_LAYERS:,}")


def pooling_modules(transformer: Transformer, pooling: PoolingName) -> list[nn.Module]:
    """Modules that turn the token states of ``transformer`` into one embedding.

    ``avg_first_last`` needs a transformer that returns its hidden states. Hidden state 0 is the
    embedding layer, so the first layer is number 1, as in princeton-nlp/SimCSE.
    """
    width = transformer.get_embedding_dimension()
    if pooling != "avg_first_last":
        return [Pooling(width, pooling)]
    layers = transformer.config.num_hidden_layers
    weights = torch.zeros(layers)
    weights[0] += 1
    weights[-1] += 1
    first_last = WeightedLayerPooling(
        width,
        num_hidden_layers=layers,
        layer_start=1,
        layer_weights=nn.Parameter(weights, requires_grad=False),
    )
    return [first_last, Pooling(width, "mean")]


def fingerprint(model: SentenceTransformer) -> str:
    """40 hex digits of a SHA-256 over whatever makes the embeddings.

    Weights, architecture, pooling, tokenizer, prompts and length; not where the model lies, nor
    which version of a library wrote it.
    """
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        flat = value.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    configs = {
        id(module.config): module.config.to_dict()
        for module in model.modules()
        if isinstance(getattr(module, "config", None), PreTrainedConfig)
    }
    architecture = [
        {key: value for key, value in config.items() if key not in _VOLATILE}
        for config in configs.values()
    ]
    modules = [module.get_config_dict() for module in model if hasattr(module, "get_config_dict")]
    backend = getattr(model.tokenizer, "backend_tokenizer", None)
    rules = json.loads(backend.to_str()) if backend is not None else {"": str(model.tokenizer)}
    for key in ("truncation", "padding"):  # of the last call, not of the tokenizer
        rules.pop(key, None)
    about = [architecture, modules, model.prompts, model.max_seq_length, model.similarity_fn_name]
    digest.update(json.dumps([*about, rules], sort_keys=True, default=str).encode())
    return digest.hexdigest()[:40]


def transformer_of(model: SentenceTransformer, route: str = QUERY) -> Transformer:
    """The transformer module; of two towers that of ``route``."""
    first = model[0]
    return first.sub_modules[route][0] if isinstance(first, Router) else first


def routes(model: SentenceTransformer) -> list[str | None]:
    """What ``model`` can be asked for as ``task``: its towers, or nothing where it has one."""
    first = model[0]
    return list(first.sub_modules) if isinstance(first, Router) else [None]


def hub_commit(config: EncoderConfig) -> str | None:
    """Commit of the Hub repository that the encoder is loaded from; ``None`` for a folder."""
    if Path(source_of(config.name)).exists():
        return None
    return hub.cached_commit(config.name, config.revision)


def width(model: SentenceTransformer) -> int:
    """Width of the embeddings."""
    return int(model.get_embedding_dimension())


@contextmanager
def dropout(model: nn.Module, rate: float | None) -> Iterator[None]:
    """Every dropout probability of a model set to ``rate``; ``None`` leaves them.

    Covers ``nn.Dropout`` and attention that keeps its probability as a number.
    """
    places = [] if rate is None else _dropout_places(model)
    before = [getattr(module, name) for module, name in places]
    for module, name in places:
        setattr(module, name, rate)
    try:
        yield
    finally:
        for (module, name), value in zip(places, before, strict=True):
            setattr(module, name, value)


def _dropout_places(model: nn.Module) -> list[tuple[nn.Module, str]]:
    places: list[tuple[nn.Module, str]] = [
        (module, "p") for module in model.modules() if isinstance(module, nn.Dropout)
    ]
    for module in model.modules():
        names = [n for n in ("attention_dropout", "dropout_prob") if n in vars(module)]
        places += [(module, n) for n in names if isinstance(getattr(module, n), float)]
    return places


def training_key(model: SentenceTransformer) -> str:
    """Key of the model's output under which the loss finds the embeddings."""
    return TRAIN_EMBEDDING if _has_train_only_projection(model) else SENTENCE_EMBEDDING


def exported(model: SentenceTransformer) -> SentenceTransformer:
    """The model without its training-time projection, sharing all other modules with ``model``."""
    if not _has_train_only_projection(model):
        return model
    return SentenceTransformer(
        modules=list(model.children())[:-1],
        device=str(model.device),
        trust_remote_code=model.trust_remote_code,
    )


def save(model: SentenceTransformer, folder: Path) -> None:
    """Save in the layout that sentence-transformers 5 and 6 read, safetensors only, no card."""
    model.save_pretrained(str(folder), create_model_card=False)
    for weights in folder.rglob("*.safetensors"):
        give_usual_mode(weights)
    network = transformer_of(model).model
    use_common_layout(
        folder,
        max_length=model.max_seq_length,
        pooler=getattr(network, "pooler", True) is not None,
        token_types="token_type_ids" in inspect.signature(network.forward).parameters,
    )


def is_intact(folder: Path) -> bool:
    """Whether a saved model has its list of modules and weights that are whole."""
    transformer = ("model.safetensors", "model.safetensors.index.json")  # whole, or in shards
    needed = (folder / "modules.json").is_file() and any(
        path.is_file()
        for n in transformer
        for path in (folder / n, folder / f"{QUERY}_0_Transformer" / n)
    )
    try:
        for path in folder.rglob("*.safetensors"):
            with safe_open(path, "pt"):  # compares the header with the file's length
                pass
    except (OSError, SafetensorError):
        return False
    return needed


def _projection(transformer: Transformer, *, train_only: bool) -> Dense:
    """Dense layer with tanh, initialised as BERT initialises (SimCSE's MLP layer)."""
    width = transformer.get_embedding_dimension()
    dense = Dense(
        width,
        width,
        activation_function=nn.Tanh(),
        module_output_name=TRAIN_EMBEDDING if train_only else None,
    )
    nn.init.normal_(dense.linear.weight, std=getattr(transformer.config, "initializer_range", 0.02))
    nn.init.zeros_(dense.linear.bias)
    return dense


def _has_train_only_projection(model: SentenceTransformer) -> bool:
    last = list(model.children())[-1]
    return isinstance(last, Dense) and last.module_output_name == TRAIN_EMBEDDING


def _dropout_settings(settings: dict[str, Any]) -> list[str]:
    return [
        name
        for name, value in settings.items()
        if "dropout" in name
        and isinstance(value, int | float)
        and not any(head in name for head in _HEAD_DROPOUT)
    ]


def _load(loader: Any, config: EncoderConfig) -> Any:
    with _loading(config):
        return loader.from_pretrained(
            source_of(config.name),
            revision=config.revision,
            trust_remote_code=config.trust_remote_code,
        )


@contextmanager
def _loading(config: EncoderConfig) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # every kind of network, authentication, lookup and format error
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if Path(source_of(config.name)).is_dir():
            problem = "is a folder, but not an encoder that can be loaded"
        else:
            problem = "is neither a model folder here nor could it be had from the Hugging Face Hub"
        raise hub.failure(f"encoder.name: {config.name} {problem}: {reason}", error) from error
