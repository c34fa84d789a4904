"""The sentence encoder: a Hugging Face model, pooling, projection; built, saved, exported.

Only stock sentence-transformers modules are used, so whatever is saved here loads with
``SentenceTransformer(path)``, and needs ``trust_remote_code`` only where the encoder itself does.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Router, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling, WeightedLayerPooling
from torch import nn
from transformers import MODEL_MAPPING, AutoConfig, PreTrainedConfig

from simcse.config.settings import Attention, EncoderConfig, Role
from simcse.config.settings import Pooling as PoolingName
from simcse.encoders import gate, lora
from simcse.encoders.gate import Origin
from simcse.encoders.language_models import complete_tokenizer, set_attention
from simcse.encoders.layout import use_common_layout
from simcse.errors import UserError
from simcse.files import give_usual_mode
from simcse.hub import failures
from simcse.hub.snapshots import snapshot

EMBEDDED_ENCODER = "mini-bert"
"""The language model that comes with the package; the quickstart trains it."""
EMBEDDED_MODEL = "mini-distilled"
"""The sentence encoder that comes with it, for use as it is."""
EMBEDDED = (EMBEDDED_ENCODER, EMBEDDED_MODEL)
# Where the loss finds its embeddings when the projection is for training only; `encode` reads
# "sentence_embedding" and so never sees the projection.
TRAIN_EMBEDDING = "train_embedding"
SENTENCE_EMBEDDING = "sentence_embedding"

# Routes of a model with two towers: anchors are queries, all others documents.
QUERY, DOCUMENT = "query", "document"


# Of a transformers config: what says nothing about the embeddings.
_VOLATILE = ("_name_or_path", "transformers_version", "dtype", "torch_dtype")

# princeton-nlp's training code has another name for the pooler's layer.
_SIMCSE_POOLER = {r"^mlp\.dense\.": "pooler.dense."}

_WORDS = ["A river of seven stones.", "Yes."]

# sentence-transformers' names of poolings that have another one here.
_MODES = {"weighted_mean": "weightedmean", "last_token": "lasttoken"}

# Dropout of heads that a sentence encoder does not have.
_HEAD_DROPOUT = ("classif", "summary", "qa_", "pooler")


def is_hub_name(name: str) -> bool:
    """Whether a model is neither a folder nor shipped with the package."""
    return not (Path(name).is_dir() or name in EMBEDDED)


def source_of(
    name: str, revision: str | None = None, *, label: str | None = None, refresh: bool = False
) -> str:
    """Folder of a model: as named, one that is shipped, or what is had from the Hub.

    Args:
        name: Folder or Hub name.
        revision: Branch, tag or commit of a Hub name.
        label: Starts the error, in place of the name.
        refresh: Ask the Hub for the newest commit.

    Raises:
        UserError: There is none, or a folder is given a revision.
    """
    if not is_hub_name(name):
        if revision is not None:
            raise UserError(f"{label or name}: revision {revision} has no meaning for a folder")
        return name if Path(name).is_dir() else str(Path(__file__).parent.parent / "assets" / name)
    try:
        return str(snapshot(name, revision, refresh=refresh))
    except UserError as error:
        raise failures.failure(
            f"{label or name} is neither a model folder here nor could it be had from the Hugging "
            f"Face Hub: {error}",
            error,
        ) from error


def origin_of(config: EncoderConfig) -> Origin:
    """The encoder of a run's config, which also says whether its code may run."""
    label = f"encoder.name: {config.name}"
    folder = source_of(config.name, config.revision, label=label)
    consent = "allow it with encoder.trust_remote_code=true"
    return Origin(label, folder, consent, config.trust_remote_code)


def build(config: EncoderConfig) -> SentenceTransformer:
    """The model to train: what the encoder is, its adapters and the projection if any.

    A sentence-transformers model keeps all of its modules and settings; any other encoder gets a
    pooling.

    Raises:
        UserError: The encoder cannot be loaded, cannot be trained on text, or contradicts the
            settings.
    """
    origin = origin_of(config)
    if gate.stores_modules(origin):
        model = _sentence_model(origin, config)
    else:
        model = with_pooling(
            origin,
            config.pooling or "mean",
            config.dropout,
            attention=config.attention,
            dtype=getattr(torch, config.dtype),
        )
    tokenizer = model.tokenizer
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(f"{origin.label} has no fast tokenizer (tokenizers library)")
    if tokenizer.pad_token_id is None:
        raise UserError(f"{origin.label}: its tokenizer has no padding token")
    if config.prompts:
        model.prompts.update(config.prompts)
        gate.check_embeddings("encoder.prompts", model)
    if config.has_adapters:
        commit = hub_commit(config)
        base = config.name if commit else str(Path(origin.path).absolute())
        lora.add(transformer_of(model).model, config.lora, base, commit)
    if config.towers == "two":
        # A copy starts from the same weights and then goes its own way.
        modules = list(model.children())
        router = Router.for_query_document(modules, copy.deepcopy(modules), default_route=QUERY)
        model = _of_modules(OrderedDict({"0": router}), model)
    if config.projection != "none" and not _has_train_only_projection(model):
        projection = _projection(model, train_only=config.projection == "train_only")
        model.append(projection.to(model.device))
    return model


def with_pooling(
    origin: Origin,
    pooling: PoolingName,
    dropout: float | None = None,
    *,
    attention: Attention = "own",
    dtype: torch.dtype = torch.float32,
) -> SentenceTransformer:
    """An encoder that does not say how it is pooled, and a pooling.

    Args:
        origin: The encoder.
        pooling: As ``encoder.pooling``.
        dropout: Overrides every dropout probability of the encoder.
        attention: As ``encoder.attention``.
        dtype: Of the weights.

    Raises:
        UserError: The encoder cannot be loaded, or has no dropout, pooler or attention as asked
            for.
    """
    gate.check_files(origin)
    with gate.failing_for(origin):
        settings = AutoConfig.from_pretrained(
            origin.path, trust_remote_code=origin.trust_remote_code
        )
    overrides = _overrides(origin, settings, dropout)
    if pooling == "avg_first_last":
        overrides["output_hidden_states"] = True
    # A masked language model has no pooler: transformers would make one up at random and save it.
    has_pooler = gate.has_optional_pooler(MODEL_MAPPING.get(type(settings), None))
    if has_pooler and pooling == "pooler":
        arguments: dict[str, Any] = {"key_mapping": _SIMCSE_POOLER}
    else:
        arguments = {"add_pooling_layer": False} if has_pooler else {}
    arguments["dtype"] = dtype
    transformer, complete = gate.load_transformer(origin, config=overrides, model=arguments)
    complete_tokenizer(transformer.tokenizer, appends_end=pooling == "last_token")
    set_attention(origin.label, transformer, attention, [pooling])
    layer = getattr(getattr(transformer.model, "pooler", None), "dense", None)
    if pooling == "pooler" and not (has_pooler and complete and isinstance(layer, nn.Linear)):
        raise UserError(f"{origin.label} has no weights of a pooler, which pooling pooler needs")
    modules = [transformer, *pooling_modules(transformer, pooling)]
    model = SentenceTransformer(modules=modules, trust_remote_code=origin.trust_remote_code)
    gate.check_embeddings(origin.label, model)
    return model


def _sentence_model(origin: Origin, config: EncoderConfig) -> SentenceTransformer:
    """A sentence-transformers model to be trained further."""
    dtype = getattr(torch, config.dtype)
    model = gate.load_sentence_model(origin, dtype=dtype)
    first = model[0]
    if not (isinstance(first, Transformer) and "text" in first.modality_config):
        raise UserError(
            f"{origin.label} begins with the module {type(first).__name__}; only models that begin "
            "with a Transformer of text can be trained further"
        )
    stored = pooling_of(model)
    if config.pooling not in (None, stored):
        raise UserError(
            f"encoder.pooling: {config.name} has pooling {stored} of its own, which it keeps; "
            "leave encoder.pooling out, or set it to null"
        )
    if config.projection == "always":
        raise UserError(
            f"encoder.projection: {config.name} keeps the modules it has; allowed is train_only or "
            "none"
        )
    if config.dropout is not None:
        overrides = _overrides(origin, first.config, config.dropout)
        model = gate.load_sentence_model(origin, dtype=dtype, config=overrides)
    network = model[0].model
    if getattr(network, "peft_config", None):  # it brings adapters: they become part of it
        if config.has_adapters:
            raise UserError(f"encoder.lora: {config.name} is adapters already; name a merged model")
        lora.merge(network)
        network.requires_grad_(True)
    set_attention(origin.label, model[0], config.attention, [])
    return model


def _of_modules(
    modules: OrderedDict[str, nn.Module], model: SentenceTransformer
) -> SentenceTransformer:
    """Modules with the settings that ``model`` has around its own."""
    result = SentenceTransformer(
        modules=modules,
        device=str(model.device),
        prompts=model.prompts,
        default_prompt_name=model.default_prompt_name,
        similarity_fn_name=model.similarity_fn_name,
        truncate_dim=model.truncate_dim,
        trust_remote_code=model.trust_remote_code,
    )
    result.module_kwargs = model.module_kwargs
    return result


def pooling_of(model: SentenceTransformer) -> str:
    """The pooling of a model, in the words of ``encoder.pooling`` where it has one."""
    if any(isinstance(module, WeightedLayerPooling) for module in model.modules()):
        return "avg_first_last"
    modes = [module.pooling_mode for module in model.modules() if isinstance(module, Pooling)]
    mode = modes[0] if modes else ("none",)
    names = {own: name for name, own in _MODES.items()}
    return names.get(mode, mode) if isinstance(mode, str) else "+".join(mode)


def pooling_modules(transformer: Transformer, pooling: PoolingName) -> list[nn.Module]:
    """Modules that turn the token states of ``transformer`` into one embedding.

    ``avg_first_last`` needs a transformer that returns its hidden states. Hidden state 0 is the
    embedding layer, so the first layer is number 1, as in princeton-nlp/SimCSE. ``pooler`` takes
    the pooler's layer out of the transformer.
    """
    width = transformer.get_embedding_dimension()
    if pooling == "pooler":
        layer = transformer.model.pooler.dense
        transformer.model.pooler = None  # as where it is left out
        dense = Dense(
            width,
            width,
            activation_function=nn.Tanh(),
            init_weight=layer.weight.detach(),
            init_bias=layer.bias.detach(),
        )
        return [Pooling(width, "cls"), dense]
    if pooling != "avg_first_last":
        return [Pooling(width, _MODES.get(pooling, pooling))]
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
    inner = [m for m in model.modules() if m is not model and hasattr(m, "get_config_dict")]
    modules = [module.get_config_dict() for module in inner]
    backend = getattr(model.tokenizer, "backend_tokenizer", None)
    rules = json.loads(backend.to_str()) if backend is not None else {"": str(model.tokenizer)}
    for key in ("truncation", "padding"):  # of the last call, not of the tokenizer
        rules.pop(key, None)
    sides = [getattr(model.tokenizer, f"{kind}_side", None) for kind in ("truncation", "padding")]
    about = [architecture, modules, model.prompts, model.max_seq_length, model.similarity_fn_name]
    about += [model.default_prompt_name, model.truncate_dim, sides]
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


def prompt_of(model: SentenceTransformer, role: Role | None) -> str:
    """What the library puts before a text of a role; ``None`` is that of ``model.encode``."""
    prompts: dict[str, str] = model.prompts
    return prompts.get(role or model.default_prompt_name or "", "")


def hub_commit(config: EncoderConfig) -> str | None:
    """Commit of the Hub repository that the encoder is loaded from; ``None`` for a folder."""
    if is_hub_name(config.name):
        return Path(source_of(config.name, config.revision)).name  # …/snapshots/<commit>
    return None


def width(model: SentenceTransformer) -> int:
    """Width of the embeddings that the modules give; ``encode`` may cut them."""
    with model.truncate_embeddings(None):
        return int(model.get_embedding_dimension())


@contextmanager
def dropout(model: nn.Module, rate: float | None) -> Iterator[None]:
    """Every dropout probability of a model set to ``rate``; ``None`` leaves them.

    Covers ``nn.Dropout`` and modules that keep a probability as a number.
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
    return [
        (module, name)
        for module in model.modules()
        for name, value in vars(module).items()
        if "dropout" in name or (name == "p" and "Dropout" in type(module).__name__)
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]


def check_dropout_is_reached(model: SentenceTransformer) -> None:
    """Make sure that :func:`dropout` sets all of a model's dropout, by asking the model.

    Raises:
        UserError: At rate 0 two passes still differ.
    """
    tokens = model.tokenizer(_WORDS, padding=True, return_tensors="pt").to(model.device)
    features = {key: tokens[key] for key in ("input_ids", "attention_mask")}
    modes = {module: module.training for module in model.modules()}
    with torch.random.fork_rng(), torch.no_grad(), dropout(model.train(), 0.0):
        first, second = (model(dict(features))[SENTENCE_EMBEDDING] for _ in range(2))
    for module, mode in modes.items():
        module.training = mode
    if not torch.allclose(first, second, rtol=0, atol=1e-5 * float(first.abs().max())):
        raise UserError(
            "views: dropout of a view cannot be set, since this encoder is random at dropout 0 "
            "too; use encoder.dropout"
        )


def training_key(model: SentenceTransformer) -> str:
    """Key of the model's output under which the loss finds the embeddings."""
    return TRAIN_EMBEDDING if _has_train_only_projection(model) else SENTENCE_EMBEDDING


def exported(model: SentenceTransformer) -> SentenceTransformer:
    """The model without its training-time projection, sharing all other modules with ``model``."""
    if not _has_train_only_projection(model):
        return model
    return _of_modules(OrderedDict(list(model.named_children())[:-1]), model)


def save(model: SentenceTransformer, folder: Path) -> None:
    """Save in the layout that sentence-transformers 5 and 6 read, safetensors only, no card."""
    if backend := getattr(model.tokenizer, "backend_tokenizer", None):
        # Those of the last call, which other libraries (fastembed) would take for the model's.
        backend.no_truncation()
        backend.no_padding()
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


def _projection(model: SentenceTransformer, *, train_only: bool) -> Dense:
    """Dense layer with tanh, initialised as BERT initialises (SimCSE's MLP layer)."""
    dense = Dense(
        width(model),
        width(model),
        activation_function=nn.Tanh(),
        module_output_name=TRAIN_EMBEDDING if train_only else None,
    )
    std = getattr(transformer_of(model).config, "initializer_range", 0.02)
    nn.init.normal_(dense.linear.weight, std=std)
    nn.init.zeros_(dense.linear.bias)
    return dense


def _has_train_only_projection(model: SentenceTransformer) -> bool:
    last = list(model.children())[-1]
    return isinstance(last, Dense) and last.module_output_name == TRAIN_EMBEDDING


def _overrides(origin: Origin, settings: PreTrainedConfig, dropout: float | None) -> dict[str, Any]:
    """Settings of ``config.json`` that give every dropout probability of the encoder this value."""
    if dropout is None:
        return {}
    if not (names := dropout_settings(settings)):
        raise UserError(
            f"encoder.dropout: {origin.path} has no dropout settings to override; encoder.lora has "
            "dropout of its own"
        )
    return dict.fromkeys(names, dropout)


def dropout_settings(settings: PreTrainedConfig) -> list[str]:
    """Which settings of ``config.json`` are dropout probabilities of the encoder itself."""
    return [
        name
        for name, value in settings.to_dict().items()
        if ("dropout" in name or name.endswith("pdrop"))  # the latter in GPT-2
        and isinstance(value, int | float)
        and not any(head in name for head in _HEAD_DROPOUT)
    ]
