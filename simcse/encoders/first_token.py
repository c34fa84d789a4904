"""Leaves out what the embedding does not need of the last layer.

An embedding that is pooled from the first token needs the last layer's keys and values of all
tokens, but its feed-forward network, for one, of the first token only. Which outputs can be cut is
found by trying, so that no architecture is named here: a cut stays if neither embeddings nor
gradients change and the pass takes fewer operations.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from simcse.encoders import encoder

_TOLERANCE = 1e-5  # of the largest number in a tensor
# An odd number: models that pad texts to a multiple of something must do so here.
_TOKENS = 33
_WORDS = ["a", "of", "river", "seven", "blue", "stone", "yes", "paper"]


def find_cuts(model: SentenceTransformer) -> list[nn.Module]:
    """Modules of the last layer whose outputs can be cut to the first token.

    Tries them on two texts of 33 tokens and of one word, in passes without dropout: one for each
    module of the last layer. On the CPU that takes some tenths of a second for a small encoder.

    Returns:
        Modules for :func:`cut`; none where the embedding is not pooled from the first token (or
        that is not the text's, as with padding on the left and prompts that are not pooled), where
        layers share their weights, or where it cannot be told.
    """
    if any(not m.include_prompt for m in model.modules() if isinstance(m, Pooling)):
        return []
    modes = {module: module.training for module in model.modules()}
    random_state = torch.random.get_rng_state()
    model.eval()
    try:
        return [module for route in encoder.routes(model) for module in _cuts_of(model, route)]
    finally:
        for module, mode in modes.items():
            module.training = mode
        torch.random.set_rng_state(random_state)


@contextmanager
def cut(modules: Sequence[nn.Module]) -> Iterator[None]:
    """The outputs of ``modules``, ``(batch, tokens, width)``, are cut to the first token."""
    with ExitStack() as stack:
        for module in modules:
            stack.callback(module.register_forward_hook(_first_token).remove)
        yield


@dataclass(frozen=True)
class _Pass:
    """What a pass over the two texts gives, and how many operations it takes."""

    results: list[Tensor]
    """Embeddings by every key, and all gradients of the last two layers' parameters as one."""
    operations: int

    def equals(self, other: _Pass) -> bool:
        """Whether all results are the same, but for rounding."""
        return all(
            a.shape == b.shape and float((a - b).abs().max()) <= _TOLERANCE * float(b.abs().max())
            for a, b in zip(self.results, other.results, strict=True)
        )


def _cuts_of(model: SentenceTransformer, route: str | None) -> list[nn.Module]:
    transformer = encoder.transformer_of(model, route or encoder.QUERY)
    stacks = [module for module in transformer.modules() if isinstance(module, nn.ModuleList)]
    layers = max(stacks, key=len, default=nn.ModuleList())
    tokenizer = model.tokenizer
    is_flat = getattr(transformer, "can_flatten_inputs", False)  # all texts in one row
    if not len(layers) or is_flat or tokenizer.padding_side != "right":
        return []
    texts = [" ".join(_WORDS * (_TOKENS // len(_WORDS) + 1)), _WORDS[0]]
    found = tokenizer(texts, padding=True, truncation=True, max_length=_TOKENS, return_tensors="pt")
    features = {key: value.to(model.device) for key, value in found.items()}
    called: list[nn.Module] = []  # inner modules before those that hold them
    with ExitStack() as stack:
        for module in layers[-1].modules():
            note = module.register_forward_hook(lambda module, *_: called.append(module))
            stack.callback(note.remove)
        whole = least = _try(model, layers, features, route)
    kept: list[nn.Module] = []
    for module in [layers[-1], *dict.fromkeys(called)]:
        with cut([*kept, module]):
            try:
                shorter = _try(model, layers, features, route)
            except (RuntimeError, ValueError, IndexError):  # shapes that do not fit each other
                shorter = None
        same = shorter is not None and shorter.equals(whole)
        if module is layers[-1] and not same:
            return []  # the embedding needs other tokens too
        if shorter is not None and same and shorter.operations < least.operations:
            kept.append(module)
            least = shorter
    return kept


def _try(
    model: SentenceTransformer,
    layers: nn.ModuleList,
    features: dict[str, Tensor],
    route: str | None,
) -> _Pass:
    task = {} if route is None else {"task": route}
    counter = FlopCounterMode(display=False)
    with torch.enable_grad(), torch.autocast(model.device.type, enabled=False):
        with counter:
            output = model(dict(features), **task)
        keys = (encoder.SENTENCE_EMBEDDING, encoder.TRAIN_EMBEDDING)
        embeddings = [output[key] for key in keys if key in output]
        learned = [p for layer in layers[-2:] for p in layer.parameters() if p.requires_grad]
        if not learned:
            return _Pass(embeddings, counter.get_total_flops())
        total = torch.stack([embedding.float().square().sum() for embedding in embeddings]).sum()
        gradients = torch.autograd.grad(total, learned, materialize_grads=True)
    # One tensor, since some are nothing but rounding: a softmax does not change with a key's bias.
    together = torch.cat([gradient.flatten() for gradient in gradients])
    results = [embedding.detach() for embedding in embeddings]
    return _Pass([*results, together], counter.get_total_flops())


def _first_token(module: nn.Module, inputs: Any, output: Any) -> Any:
    if isinstance(output, tuple):
        return (_first_token(module, inputs, output[0]), *output[1:])
    is_sequence = isinstance(output, Tensor) and output.dim() == 3
    return output[:, :1] if is_sequence else output
