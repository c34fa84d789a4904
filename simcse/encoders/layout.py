"""The layout of a saved model that every reader knows.

sentence-transformers 6 writes names of modules and settings that version 5, and servers built on
it, cannot read. Both read the older ones, with equal embeddings, so those are what is on disk.
Files of transformers 5 likewise.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Keys of 1_Pooling/config.json in version 5, by what version 6 calls them.
_POOLING_KEYS = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
_DENSE_KEYS = ("in_features", "out_features", "bias", "activation_function")
# What version 6 writes of every encoder of text, and version 5 refuses.
_TRANSFORMER_DEFAULTS = {
    "transformer_task": "feature-extraction",
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    "module_output_name": "token_embeddings",
}
_TRANSFORMER_FILE = "sentence_bert_config.json"
_ROUTER_FILE = "router_config.json"
# What says how the tokenizer was loaded, not what it is.
_TOKENIZER_NOISE = ("is_local", "local_files_only", "backend")


def use_common_layout(
    folder: Path, *, max_length: int | None, pooler: bool, token_types: bool
) -> None:
    """Rewrite what ``SentenceTransformer.save_pretrained`` wrote; weights are not touched.

    Args:
        folder: The saved model.
        max_length: Longest input in tokens.
        pooler: Whether the encoder has one; without this a reader would make one up at random.
        token_types: Whether the encoder takes ``token_type_ids``.
    """
    modules = folder / "modules.json"
    _edit(modules, lambda entries: [{**e, "type": _module_type(e["type"])} for e in entries])
    for entry in json.loads(modules.read_text(encoding="utf-8")):
        _edit_module(folder / entry["path"], entry["type"], max_length, pooler=pooler)
    rewrite_tokenizers(folder, token_types=token_types)


def rewrite_tokenizers(folder: Path, *, token_types: bool) -> None:
    """Every ``tokenizer_config.json`` as transformers 4 reads it too."""
    for path in folder.rglob("tokenizer_config.json"):
        _edit(path, lambda settings: _tokenizer_settings(settings, token_types=token_types))


def _edit_module(folder: Path, kind: str, max_length: int | None, *, pooler: bool) -> None:
    library, _, name = kind.rpartition(".")
    if not library.startswith("sentence_transformers."):
        return  # has files of its own
    if name == "Transformer":
        settings: dict[str, Any] = {"max_seq_length": max_length, "do_lower_case": False}
        if not pooler:
            settings["model_args"] = {"add_pooling_layer": False}
        _edit(
            folder / _TRANSFORMER_FILE,
            lambda old: (
                settings | {key: v for key, v in old.items() if v != _TRANSFORMER_DEFAULTS.get(key)}
            ),
        )
    elif name == "Pooling":
        _edit(folder / "config.json", _pooling_settings)
    elif name == "WeightedLayerPooling":
        _edit(folder / "config.json", _with_word_dimension)
    elif name == "Dense":
        _edit(folder / "config.json", _dense_settings)
    elif name == "Router":
        _edit(folder / _ROUTER_FILE, _router_settings)
        types = json.loads((folder / _ROUTER_FILE).read_text(encoding="utf-8"))["types"]
        for path, inner in types.items():
            _edit_module(folder / path, inner, max_length, pooler=pooler)


def _module_type(kind: str) -> str:
    """``sentence_transformers.models.Pooling`` for the stock module, wherever it has moved to."""
    own = kind.startswith("sentence_transformers.")
    return f"sentence_transformers.models.{kind.rpartition('.')[2]}" if own else kind


def _pooling_settings(settings: dict[str, Any]) -> dict[str, Any]:
    mode = settings.pop("pooling_mode")
    modes = [mode] if isinstance(mode, str) else mode
    flags = {key: name in modes for name, key in _POOLING_KEYS.items()}
    return {**_with_word_dimension(settings), **flags}


def _with_word_dimension(settings: dict[str, Any]) -> dict[str, Any]:
    return {"word_embedding_dimension": settings.pop("embedding_dimension"), **settings}


def _dense_settings(settings: dict[str, Any]) -> dict[str, Any]:
    # Version 5.1 refuses keys it does not know. An output of its own marks the projection that is
    # for training only: it stays, in checkpoints; the exported model has no such layer.
    extra = {k: v for k, v in settings.items() if k not in _DENSE_KEYS and v is not None}
    for key in ("module_input_name", "module_output_name"):
        if extra.get(key) == "sentence_embedding":  # the only one that version 5.1 knows
            del extra[key]
    return {**{key: settings[key] for key in _DENSE_KEYS}, **extra}


def _router_settings(settings: dict[str, Any]) -> dict[str, Any]:
    types = {path: _module_type(kind) for path, kind in settings["types"].items()}
    parameters = {k: v for k, v in settings["parameters"].items() if k != "route_mappings" or v}
    return {**settings, "types": types, "parameters": parameters}


def _tokenizer_settings(settings: dict[str, Any], *, token_types: bool) -> dict[str, Any]:
    if settings.get("tokenizer_class") == "TokenizersBackend":  # transformers 5's new name
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(extra := settings.get("extra_special_tokens"), list):
        # Version 4 takes a mapping under this name; both take a list under the older one.
        del settings["extra_special_tokens"]
        settings["additional_special_tokens"] = extra
    if not token_types:  # a generic tokenizer makes them all the same, and the encoder refuses them
        settings["model_input_names"] = ["input_ids", "attention_mask"]
    return {key: value for key, value in settings.items() if key not in _TOKENIZER_NOISE}


def _edit(path: Path, change: Callable[[Any], Any]) -> None:
    settings = change(json.loads(path.read_text(encoding="utf-8")))
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
