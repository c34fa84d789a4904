"""Where a model comes in: whole, finite, with its tokenizer, and running no foreign code unasked.

The libraries make up what a checkpoint lacks: weights at random, a tokenizer without a vocabulary.
Here that is an error. Whatever is trained, used, taught from or exported passes through here.
"""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from safetensors import SafetensorError
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.base.modules import Dense, Transformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from torch import nn
from transformers import PreTrainedModel
from transformers import __version__ as transformers_version
from transformers.utils import logging as transformers_logging

from simcse.encoders import settings_files
from simcse.errors import UserError, first_line, is_defect
from simcse.hub import failures

logger = logging.getLogger("simcse")

_KIND = "SentenceTransformer"  # beside it the library has cross-encoders and sparse ones
_NAMED = 3  # weights that an error names
_MOST_LAYERS = 1_000
# Pairs of texts of one token, or of as many, in alphabets of which every vocabulary has one.
_PAIRS = ["a", "b", "1", "2", "一", "二", "и", "я"]


@dataclass(frozen=True)
class Origin:
    """A model that is asked for, and by whom."""

    label: str
    """Starts every error, such as ``encoder.name: bert-base-uncased``."""
    path: str
    """Its folder."""
    consent: str
    """How the user lets a model run code of its own."""
    trust_remote_code: bool = False


def stores_modules(origin: Origin) -> bool:
    """Whether it is a sentence-transformers model."""
    return (Path(origin.path) / settings_files.MODULES).is_file()


def load_sentence_model(
    origin: Origin,
    *,
    device: str | None = None,
    dtype: torch.dtype | None = None,
    config: Mapping[str, Any] | None = None,
) -> SentenceTransformer:
    """A sentence-transformers model with all of its modules and settings.

    Args:
        origin: Which.
        device: ``None`` takes the best at hand.
        dtype: Of the weights; ``None`` leaves it to the checkpoint.
        config: Replaces settings of the encoder's ``config.json``.

    Raises:
        UserError: It cannot be had or is not sound.
    """
    check_files(origin)
    with failing_for(origin):
        _check_activations(origin)
    with _admitting(origin) as made_up:
        model = SentenceTransformer(
            origin.path,
            device=device,
            trust_remote_code=origin.trust_remote_code,
            model_kwargs=None if dtype is None else {"dtype": dtype},
            config_kwargs=None if config is None else dict(config),
        )
    for module in model.modules():
        if isinstance(module, StaticEmbedding):
            vocabulary = module.tokenizer.get_vocab()
            _check_vocabulary(origin, vocabulary, module.embedding.num_embeddings)
        if isinstance(module, Transformer):
            _check_tokenizer(origin, module)
            _keep_to_positions(origin, module)
            if made_up and "pooler_output" in str(module.modality_config):
                _refuse_weights(origin, {"missing": made_up})
            if made_up and has_optional_pooler(type(module.model)):
                module.model.pooler = None
    _check_finite(origin, model)
    check_embeddings(origin.label, model)
    return model


def load_cross_encoder(origin: Origin) -> CrossEncoder:
    """A model that scores pairs of texts, of which there is one number for each.

    Raises:
        UserError: It cannot be had or is not sound.
    """
    check_files(origin, "CrossEncoder")
    with _admitting(origin) as made_up:
        model = CrossEncoder(origin.path, trust_remote_code=origin.trust_remote_code)
    _refuse_weights(origin, {"missing": made_up})
    _check_finite(origin, model)
    if model.num_labels != 1:
        raise UserError(f"{origin.label}: gives {model.num_labels} numbers for a pair, expected 1")
    return model


def check_embeddings(label: str, model: SentenceTransformer) -> None:
    """See that embeddings depend on the text, for queries and documents too.

    They do not where the longest input, or a prompt, leaves no room for the text, nor where weights
    are zero.

    Args:
        label: Starts every error.
        model: Any.

    Raises:
        UserError: Different texts get the same embedding, or the model cannot embed at all.
    """
    for encode in (model.encode, model.encode_query, model.encode_document):
        try:
            found = encode(_PAIRS, convert_to_tensor=True, show_progress_bar=False)
        except Exception as error:  # what its files say of its tokenizer shows only when it is used
            reason = first_line(error)
            if is_defect(error):
                names = ", ".join(type(module).__name__ for module in model)
                reason = f"its modules ({names}) make no embedding of a text"
            raise UserError(f"{label}: cannot be used: {reason}") from error
        if (found[::2] - found[1::2]).norm() <= 1e-6 * found.norm():
            raise UserError(
                f"{label}: different texts get the same embedding; its longest input is "
                f"{model.max_seq_length} tokens, prompt and special tokens included"
            )
        if found.shape[1] != model.get_embedding_dimension():
            raise UserError(
                f"{label}: its embeddings are {found.shape[1]} wide, its files say "
                f"{model.get_embedding_dimension()}"
            )


def load_transformer(
    origin: Origin,
    *,
    config: Mapping[str, Any],
    model: Mapping[str, Any],
) -> tuple[Transformer, bool]:
    """The network and tokenizer of a checkpoint that says nothing about sentences.

    Args:
        origin: Which.
        config: Replaces settings of ``config.json``.
        model: Further arguments of ``from_pretrained``, such as the type of the weights.

    Returns:
        The module, and whether the checkpoint had the weights of its pooler, if it has one.

    Raises:
        UserError: It cannot be had or is not sound.
    """
    source = {"trust_remote_code": origin.trust_remote_code}
    with _admitting(origin) as made_up:
        transformer = Transformer(
            origin.path,
            model_kwargs={**source, **model},
            config_kwargs={**source, **config},
            processor_kwargs=dict(source),
        )
    if transformer.tokenizer is None or "text" not in transformer.modality_config:
        raise UserError(f"{origin.label}: is no encoder of text")
    _check_tokenizer(origin, transformer)
    _keep_to_positions(origin, transformer)
    _check_finite(origin, transformer)
    return transformer, not made_up


def has_optional_pooler(network: object) -> bool:
    """Whether networks of a class can do without a pooler."""
    return inspect.isclass(network) and (
        "add_pooling_layer" in inspect.signature(network.__init__).parameters
    )


@contextmanager
def failing_for(origin: Origin) -> Iterator[None]:
    """Turn whatever a library raises while it loads into one line.

    Raises:
        UserError: Instead of every kind of network, authentication, lookup and format error.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if "trust_remote_code" in str(error) and not origin.trust_remote_code:
            raise _foreign_code(origin) from error
        reason = first_line(error)[:200]
        if "processing class" in reason:
            reason = "tokenizer_config.json: no tokenizer can be made of it, such as of this class"
        reason = settings_files.tokenizer_problem(Path(origin.path)) or reason
        if isinstance(error, SafetensorError):
            reason = f"a .safetensors file is damaged, or only a pointer to it ({reason})"
        if isinstance(error, StrictDataclassFieldValidationError):
            reason = _of_a_key(error)
        if isinstance(error, KeyError):  # a name that the library has looked up
            said = [
                (file, key) for file, key, value in _settings(origin) if [value] == [*error.args]
            ]
            for file, key in said[:1]:
                reason = f"{file}: {key}: {error} is unknown to transformers {transformers_version}"
        raise failures.failure(f"{origin.label} cannot be loaded: {reason}", error) from error


def _of_a_key(error: StrictDataclassFieldValidationError) -> str:
    """What transformers says of a key of ``config.json``, without Python's words for its types."""
    said = str(error.__cause__ or error).partition(" Errors: ")[0].removesuffix(".")
    return "config.json: " + re.sub(r"<class '([\w.]+[.])?(\w+)'>", r"\2", said)


@contextmanager
def _admitting(origin: Origin) -> Iterator[set[str]]:
    """Check the weights of every network that is loaded inside.

    ``Transformer`` does not hand on the ``output_loading_info`` of ``from_pretrained``, so that is
    asked for where every network is loaded.

    Yields:
        Weights of poolers that were made up: an embedding from token states does not need them.
    """
    made_up: set[str] = set()
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # its report of the weights is ours to judge
    original = PreTrainedModel.__dict__["from_pretrained"]

    def from_pretrained(cls: type[PreTrainedModel], *arguments: Any, **settings: Any) -> Any:
        # Pickles are never run, whatever the model's own files ask the library for.
        wanted = {"output_loading_info": True, "ignore_mismatched_sizes": True}
        wanted |= {"weights_only": True, "allow_all_kernels": False}
        network, info = original.__func__(cls, *arguments, **{**settings, **wanted})
        made_up.update(_check_weights(origin, network, info))
        return network

    PreTrainedModel.from_pretrained = classmethod(from_pretrained)
    try:
        with failing_for(origin):
            _check_layers(origin)
            yield made_up
    finally:
        PreTrainedModel.from_pretrained = original
        transformers_logging.set_verbosity(verbosity)


def _check_weights(origin: Origin, network: nn.Module, info: Mapping[str, Any]) -> set[str]:
    """Weights of a pooler that the checkpoint lacks.

    Raises:
        UserError: It lacks others, or has some that its config has no place for; those of heads,
            which an encoder leaves out, are not meant.
    """
    prefix = f"{getattr(network, 'base_model_prefix', '')}."
    parts = {name for name, _ in network.named_children()}
    buffers = {name for name, _ in network.named_buffers()}  # older versions saved all of them
    unexpected = {
        key
        for key in info["unexpected_keys"]
        if (own := key.removeprefix(prefix)).partition(".")[0] in parts and own not in buffers
    }
    missing = set(info["missing_keys"])
    pooler = {key for key in missing if key.startswith("pooler.")}
    shapes = {key for key, *_ in info["mismatched_keys"]}
    _refuse_weights(
        origin,
        {"missing": missing - pooler, "unexpected": unexpected, "of another shape": shapes},
    )
    return pooler


def check_files(origin: Origin, wanted: str = _KIND) -> None:
    """Refuse a folder that the libraries would wait in, or fail in: they read whatever is there.

    Raises:
        UserError: A pipe or device is in the model's folder, a setting in its files is not of its
            type, or it is a model of another kind.
    """
    root = Path(origin.path)
    for path in root.rglob("*"):
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise UserError(f"{origin.label}: {path} is a pipe or device; expected a file")
    settings_files.check(origin.label, root)
    name = "config_sentence_transformers.json"
    found = settings_files.read(origin.label, root, name) if (root / name).is_file() else {}
    if (kind := found.get("model_type", wanted)) != wanted:
        raise UserError(f"{origin.label}: is a {kind}; expected a {wanted}")


def _check_layers(origin: Origin) -> None:
    """Refuse a network that no machine would finish building: its size is a number in a file.

    Raises:
        UserError: More layers than any encoder has.
    """
    for file, key, value in _settings(origin):
        many = isinstance(value, int) and value > _MOST_LAYERS
        if many and key.endswith(("layer", "layers")):
            allowed = f"allowed is up to {_MOST_LAYERS:,}"
            raise UserError(f"{origin.label}: {file}: {key} is {value}; {allowed}")


def _settings(origin: Origin) -> Iterator[tuple[str, str, Any]]:
    """File, key and value of every setting of a model, at any depth."""
    root = Path(origin.path)
    for path in root.rglob("*config.json"):
        name = str(path.relative_to(root))
        waiting = [settings_files.read(origin.label, root, name, settings_files.Anything)]
        while waiting:
            settings = waiting.pop()
            for key, value in settings.items() if isinstance(settings, dict) else ():
                waiting.append(value)
                yield path.name, key, value


def _check_activations(origin: Origin) -> None:
    """Refuse what the library may not run: it would put tanh in the place of it.

    Raises:
        UserError: A dense layer has a foreign activation.
    """
    for path, kind in settings_files.modules(origin.label, Path(origin.path)):
        if kind == "Dense" and not origin.trust_remote_code:
            settings = Dense.load_config(origin.path, subfolder=path)
            if not settings.get("activation_function", "torch.").startswith("torch."):
                raise _foreign_code(origin)


def _foreign_code(origin: Origin) -> UserError:
    return UserError(f"{origin.label} brings code of its own, which is not run; {origin.consent}")


def _refuse_weights(origin: Origin, problems: Mapping[str, set[str]]) -> None:
    said = []
    for problem, keys in problems.items():
        more = ", …" * (len(keys) > _NAMED)
        if keys:
            said.append(f"{len(keys)} {problem} ({', '.join(sorted(keys)[:_NAMED])}{more})")
    if said:
        raise UserError(f"{origin.label}: its weights do not fit its config: {'; '.join(said)}")


def _check_tokenizer(origin: Origin, transformer: Transformer) -> None:
    tokenizer = transformer.tokenizer
    if tokenizer is None:  # not a model of text
        return
    vocabulary = tokenizer.get_vocab()
    # Made up from nothing, a tokenizer has its special tokens and at most the mark of a space.
    if len(vocabulary.keys() - set(tokenizer.all_special_tokens)) < 2:
        raise UserError(f"{origin.label}: the files of its tokenizer are missing")
    try:
        table = transformer.model.get_input_embeddings()
    except NotImplementedError:  # without a table, such as for characters
        return
    if isinstance(table, nn.Embedding):
        _check_vocabulary(origin, vocabulary, table.num_embeddings)


def _check_vocabulary(origin: Origin, vocabulary: Mapping[str, int], embeddings: int) -> None:
    if max(vocabulary.values()) >= embeddings:
        raise UserError(
            f"{origin.label}: its tokenizer is another model's: token {max(vocabulary.values())} "
            f"of {embeddings} embeddings"
        )
    if len(vocabulary) < embeddings / 2:
        logger.warning(
            "%s: its tokenizer knows %s tokens, of which it has %s embeddings; is the "
            "tokenizer another model's?",
            origin.label,
            f"{len(vocabulary):,}",
            f"{embeddings:,}",
        )


def _keep_to_positions(origin: Origin, transformer: Transformer) -> None:
    """Lower the longest input to the learned positions, beyond which the network cannot embed.

    Only a table of learned positions is a bound: rotary and relative positions have none. Tables
    with a padding index begin after it, as RoBERTa's does.
    """
    tables = [
        module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
        for name, module in transformer.model.named_modules()
        if isinstance(module, nn.Embedding) and name.endswith("position_embeddings")
    ]
    length = transformer.max_seq_length
    if not isinstance(length, int | None):
        raise UserError(f"{origin.label}: max_seq_length: expected a number, got {length!r}")
    if tables and (length is None or length > min(tables)):
        stated = "no longest input" if length is None else f"a longest input of {length:,} tokens"
        logger.warning(
            "%s states %s, its encoder has %s positions; texts are cut there",
            origin.label,
            stated,
            f"{min(tables):,}",
        )
        transformer.max_seq_length = min(tables)


def _check_finite(origin: Origin, module: nn.Module) -> None:
    for name, weight in module.named_parameters():
        if not torch.isfinite(weight).all():
            raise UserError(f"{origin.label}: its weight {name} holds NaN or infinity")
