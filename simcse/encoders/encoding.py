"""Encodes texts in batches sorted by length in tokens, so that there is next to no padding.

sentence-transformers sorts by characters, which say little about tokens (on the sentences of STS it
computes a third more tokens than there are), and tokenises batch by batch. Here all texts are
tokenised first, sorted, and laid out in batches that also fit a CPU's caches. That is for models
which this gives the same vectors for; others are encoded by the library.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from simcse.config.settings import Precision, Role
from simcse.data.tokens import first_ids, in_chunks
from simcse.encoders.encoder import SENTENCE_EMBEDDING, prompt_of
from simcse.encoders.first_token import cut, find_cuts
from simcse.encoders.onnx_graph import OnnxGraph
from simcse.encoders.precision import mixed_precision
from simcse.errors import UserError, first_line

_CHUNK = 10_000
_WORTH_CUTTING = 1000  # texts; finding what can be left out costs as much as a hundred
_MANY_CHARACTERS = 100_000  # the library would tokenise all of them, whatever the model's limit
_CPU_TOKENS = 4096  # of a batch on the CPU, where more at once is slower
# What a model may do to a text before it tokenises it; and several lengths, for what padding does.
_PROBE = (
    "  A text with Spaces,\tTabs\nand CAPITALS, also at its ends. \n",
    "short",
    *("river " * words for words in (3, 12, 40)),
)
_TOLERANCE = 1e-5


def encode_by_length(
    model: SentenceTransformer,
    texts: Sequence[str],
    batch_size: int,
    *,
    device: str | None = None,
    normalize: bool = False,
    show_progress: bool | tqdm = False,
    role: Role | None = None,
    precision: Precision = "float32",
) -> np.ndarray:
    """What ``model.encode`` gives for each text alone, and faster where lengths differ.

    Equal to 1e-5 of the largest number; with weights in half precision to the resolution of their
    type (float16: 1e-3); an ONNX graph's as :data:`~simcse.encoders.onnx_graph.TOLERANCES` has it.
    Where padding changes embeddings by more, texts are encoded one by one.

    Args:
        model: Any sentence-transformers model.
        texts: In any order; repeats are embedded once.
        batch_size: Texts a forward pass, at most.
        device: Overrides the model's.
        normalize: Divide each embedding by its length.
        show_progress: Show a bar on standard error, or move this one.
        role: As ``model.encode_query`` or ``model.encode_document``; ``None`` as ``model.encode``.
        precision: Mixed precision of the forward passes.

    Returns:
        float32, ``(texts, dim)``, in the order of the texts.

    Raises:
        UserError: An embedding is not finite.
    """
    places: dict[str, int] = {}
    where = [places.setdefault(text, len(places)) for text in texts]
    distinct = list(places)
    if not distinct:
        return np.empty((0, int(model.get_embedding_dimension())), dtype=np.float32)
    encode = partial(
        encoder_of(model, role),
        batch_size=batch_size,
        device=device,
        normalize_embeddings=normalize,
        show_progress_bar=False,
    )
    embed = partial(embed_ids, model, normalize=normalize, route=role)
    prompt = prompt_of(model, role)
    bar = show_progress if isinstance(show_progress, tqdm) else None
    own_bar = show_progress is True
    goal = bar.n + len(texts) if bar is not None else 0
    few = len(distinct) <= batch_size and sum(map(len, distinct)) < _MANY_CHARACTERS
    mixed = mixed_precision(torch.device(device or model.device), precision)
    if few and precision == "float32":
        result = encode(distinct)  # one batch: no bar
        shortest = min(range(len(distinct)), key=lambda index: len(distinct[index]))
        if len(distinct) > 1 and not _alike(
            model, encode([distinct[shortest]]), result[[shortest]]
        ):
            result = encode(distinct, batch_size=1, show_progress_bar=own_bar)
    else:
        alone = encode(list(_PROBE), batch_size=1)  # also moves the model to the device asked for
        if _alike(model, alone, _tried(model, prompt, embed)):
            prompted = [prompt + text for text in distinct]
            with mixed:
                result = _in_batches(
                    model, prompted, batch_size, embed, show_progress=show_progress
                )
        else:
            size = batch_size if _alike(model, alone, encode(list(_PROBE))) else 1
            with mixed:
                result = encode(distinct, batch_size=size, show_progress_bar=own_bar)
    result = np.asarray(result, dtype=np.float32)
    if bar is not None:
        bar.update(goal - bar.n)  # with the repeats
    if bad := len(result) - int(np.isfinite(result).all(axis=1).sum()):
        raise UserError(f"{bad} of {len(result)} embeddings hold NaN or infinity")
    return result if len(distinct) == len(texts) else result[where]


def encoder_of(model: SentenceTransformer, role: Role | None) -> Callable[..., np.ndarray]:
    """The model's method for a role."""
    method: Callable[..., np.ndarray] = {
        "query": model.encode_query,
        "document": model.encode_document,
        None: model.encode,
    }[role]
    return method


def embeds_by_role(model: SentenceTransformer) -> bool:
    """Whether queries and documents may get other embeddings: by two towers, or by prompts."""
    return any((model.prompts or {}).values()) or any(isinstance(part, Router) for part in model)


def token_ids(model: SentenceTransformer, texts: Sequence[str]) -> list[np.ndarray]:
    """Token ids of each text, int32, cut at the model's limit; needs a fast tokenizer."""
    ids: list[np.ndarray] = []
    for chunk in in_chunks(texts, _CHUNK, len):
        found, _ = first_ids(chunk, model.tokenizer, model.max_seq_length)
        ids += [np.array(one, dtype=np.int32) for one in found]
    return ids


def _in_batches(
    model: SentenceTransformer,
    texts: list[str],
    batch_size: int,
    embed: Callable[[list[np.ndarray]], np.ndarray],
    *,
    show_progress: bool | tqdm,
) -> np.ndarray:
    ids = token_ids(model, texts)
    lengths = np.array([len(one) for one in ids])
    order = np.argsort(-lengths, kind="stable")
    most = _CPU_TOKENS if model.device.type == "cpu" else batch_size * int(lengths.max())
    result: np.ndarray | None = None
    start = 0
    cuts = find_cuts(model) if len(texts) >= _WORTH_CUTTING else []
    given = nullcontext(show_progress) if isinstance(show_progress, tqdm) else None
    with (
        cut(cuts),
        given or tqdm(total=len(texts), disable=not show_progress, unit="text") as bar,
    ):
        while start < len(order):
            size = min(batch_size, max(1, most // int(lengths[order[start]])))
            chosen = order[start : start + size]
            found = embed([ids[i] for i in chosen])
            if result is None:
                result = np.empty((len(texts), found.shape[1]), dtype=np.float32)
            result[chosen] = found
            start += size
            bar.update(len(chosen))
    if result is None:
        raise ValueError("there are no texts to embed")
    return result


@torch.inference_mode()
def embed_ids(
    model: SentenceTransformer, ids: list[np.ndarray], *, normalize: bool, route: str | None = None
) -> np.ndarray:
    """Embeddings of one batch of token ids."""
    rows = [torch.from_numpy(one).long() for one in ids]
    padded = partial(pad_sequence, batch_first=True, padding_side=model.tokenizer.padding_side)
    features = {
        "input_ids": padded(rows, padding_value=model.tokenizer.pad_token_id),
        "attention_mask": padded([torch.ones_like(row) for row in rows]),
    }
    inputs = {key: value.to(model.device) for key, value in features.items()}
    task = {} if route is None else {"task": route}
    embeddings: Tensor = model.eval()(inputs, **task)[SENTENCE_EMBEDDING].float()
    embeddings = embeddings[:, : model.truncate_dim]
    if normalize:
        embeddings = functional.normalize(embeddings, dim=1)
    return embeddings.cpu().numpy()


def _tried(
    model: SentenceTransformer, prompt: str, embed: Callable[[list[np.ndarray]], np.ndarray]
) -> np.ndarray | None:
    """Embeddings of the probe in one batch, as they are computed here; ``None`` where that fails.

    They are not those of the library where it leaves a prompt out of the pooling, where it changes
    the text itself or gives the model more than token ids.
    """
    if not getattr(model.tokenizer, "is_fast", False):
        return None
    try:
        return embed(token_ids(model, [prompt + text for text in _PROBE]))
    except Exception as error:  # the library can encode with such a model, but it is said
        print(
            "warning: the library encodes this model, in its own batches, which is slower: "
            f"{first_line(error)}",
            file=sys.stderr,
        )
        return None


def _alike(model: SentenceTransformer, expected: np.ndarray, found: np.ndarray | None) -> bool:
    """Whether embeddings are the same, but for rounding."""
    types = {weight.dtype for weight in model.parameters() if weight.is_floating_point()}
    graphs = [module.tolerance for module in model if isinstance(module, OnnxGraph)]
    tolerance = max([_TOLERANCE, *graphs, *(torch.finfo(dtype).eps for dtype in types)])
    limit = tolerance * np.abs(expected).max()
    return (
        found is not None
        and found.shape == expected.shape
        and bool((np.abs(found - expected) <= limit).all())
    )
