"""Leaves out what the embedding does not need of the last layer.

An embedding that is pooled from the first token needs the last layer's keys and values of all
tokens, but its feed-forward network, for one, of the first token only. Which outputs can be cut is
found by trying, so that no architecture is named here: a cut stays if no embedding changes and the
pass takes fewer operations.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from simcse import encoder

_TOLERANCE = 1e-5  # of the largest number in an embedding
_WORDS = ["a", "of", "river", "seven", "blue", "stone", "yes", "paper"]


def find_cuts(model: SentenceTransformer, length: int) -> list[nn.Module]:
    """Modules of the last layer whose outputs can be cut to the first token.

    Tries them on two texts, a dozen small forward passes without dropout.

    Args:
        model: Any sentence-transformers model.
        length: Tokens of the longer text, as in the use that follows.

    Returns:
        Modules for :func:`cut`; none where the embedding is not pooled from the first token, where
        layers share their weights, where the last layer cannot be told, or where half precision
        hides whether an embedding has changed.
    """
    training, random_state = model.training, torch.random.get_rng_state()
    model.eval()
    try:
        return [
            module for route in encoder.routes(model) for module in _cuts_of(model, length, route)
        ]
    finally:
        model.train(training)
        torch.random.set_rng_state(random_state)


@contextmanager
def cut(modules: Sequence[nn.Module]) -> Iterator[None]:
    """The outputs of ``modules``, ``(batch, tokens, width)``, are cut to the first token."""
    with ExitStack() as stack:
        for module in modules:
            stack.callback(module.register_forward_hook(_first_token).remove)
        yield


def _cuts_of(model: SentenceTransformer, length: int, route: str | None) -> list[nn.Module]:
    layer = _last_layer(encoder.transformer_of(model, route or encoder.QUERY))
    if layer is None or not getattr(model.tokenizer, "is_fast", False):
        return []
    features = _probe(model, length)
    called: list[nn.Module] = []  # inner modules before those that hold them
    with ExitStack() as stack:
        for module in layer.modules():
            note = module.register_forward_hook(lambda module, *_: called.append(module))
            stack.callback(note.remove)
        expected, least = _embed(model, features, route)
    kept: list[nn.Module] = []
    for module in [layer, *dict.fromkeys(called)]:
        with cut([*kept, module]):
            try:
                found, operations = _embed(model, features, route)
            except (RuntimeError, ValueError, IndexError):  # shapes that do not fit each other
                found, operations = None, least
        same = found is not None and _equal(found, expected)
        if module is layer and not same:
            return []  # the embedding needs other tokens too
        if same and operations < least:
            kept.append(module)
            least = operations
    return kept


def _last_layer(transformer: nn.Module) -> nn.Module | None:
    stacks = [module for module in transformer.modules() if isinstance(module, nn.ModuleList)]
    longest = max(stacks, key=len, default=nn.ModuleList())
    return longest[-1] if len(longest) else None


def _probe(model: SentenceTransformer, length: int) -> dict[str, Tensor]:
    """Two texts, one of them of ``length`` tokens."""
    texts = [" ".join(_WORDS * (length // len(_WORDS) + 1)), " ".join(_WORDS[:3])]
    features: dict[str, Tensor] = dict(
        model.tokenizer(
            texts, padding=True, truncation=True, max_length=length, return_tensors="pt"
        )
    )
    return features


def _embed(
    model: SentenceTransformer, features: dict[str, Tensor], route: str | None
) -> tuple[list[Tensor], int]:
    """Embeddings by every key, and the operations that they took."""
    inputs = {key: value.to(model.device) for key, value in features.items()}
    task = {} if route is None else {"task": route}
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        output = model(inputs, **task)
    keys = (encoder.SENTENCE_EMBEDDING, encoder.TRAIN_EMBEDDING)
    return [output[key] for key in keys if key in output], counter.get_total_flops()


def _equal(found: list[Tensor], expected: list[Tensor]) -> bool:
    return all(
        a.shape == b.shape and float((a - b).abs().max()) <= _TOLERANCE * float(b.abs().max())
        for a, b in zip(found, expected, strict=True)
    )


def _first_token(module: nn.Module, inputs: Any, output: Any) -> Any:
    if isinstance(output, tuple):
        return (_first_token(module, inputs, output[0]), *output[1:])
    is_sequence = isinstance(output, Tensor) and output.dim() == 3
    return output[:, :1] if is_sequence else output
