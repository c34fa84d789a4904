"""Encodes texts in batches of like length in tokens, so that next to nothing is padding.

sentence-transformers sorts by characters, which say little about tokens: on the sentences of STS it
computes a third more tokens than there are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from sentence_transformers import SentenceTransformer
from tqdm import tqdm

from simcse.first_token import cut, find_cuts
from simcse.settings import Role

_CHUNK = 10_000
_WORTH_CUTTING = 1000  # texts; finding what can be left out costs as much as a hundred


def encode_by_length(
    model: SentenceTransformer,
    texts: Sequence[str],
    batch_size: int,
    *,
    device: str | None = None,
    normalize: bool = False,
    show_progress: bool = False,
    role: Role | None = None,
) -> np.ndarray:
    """What ``model.encode`` gives, to 1e-5, and faster where lengths differ.

    Args:
        model: Any sentence-transformers model.
        texts: In any order; repeats are embedded once.
        batch_size: Texts a forward pass.
        device: Overrides the model's.
        normalize: Divide each embedding by its length.
        show_progress: Show a bar on standard error.
        role: As ``model.encode_query`` or ``model.encode_document``; ``None`` as ``model.encode``.

    Returns:
        float32, ``(texts, dim)``, in the order of the texts.
    """
    places: dict[str, int] = {}
    where = [places.setdefault(text, len(places)) for text in texts]
    distinct = list(places)
    order = np.argsort(-token_lengths(model, distinct), kind="stable")
    starts = range(0, len(order), batch_size)
    encode = encoder_of(model, role)
    result: np.ndarray | None = None
    cuts = find_cuts(model) if len(distinct) >= _WORTH_CUTTING else []
    with cut(cuts):
        for start in tqdm(starts, "encode", disable=not show_progress, unit="batch"):
            chosen = order[start : start + batch_size]
            found = encode(
                [distinct[i] for i in chosen],
                batch_size=len(chosen),
                device=device,
                normalize_embeddings=normalize,
                show_progress_bar=False,
            )
            if result is None:
                result = np.empty((len(distinct), found.shape[1]), dtype=np.float32)
            result[chosen] = found
    if result is None:
        return np.empty((0, int(model.get_embedding_dimension())), dtype=np.float32)
    return result if len(distinct) == len(texts) else result[where]


def encoder_of(model: SentenceTransformer, role: Role | None) -> Callable[..., np.ndarray]:
    """The model's method for a role."""
    method: Callable[..., np.ndarray] = {
        "query": model.encode_query,
        "document": model.encode_document,
        None: model.encode,
    }[role]
    return method


def token_lengths(model: SentenceTransformer, texts: Sequence[str]) -> np.ndarray:
    """Tokens of each text, cut at the model's limit; characters without a fast tokenizer."""
    tokenizer = model.tokenizer
    if not getattr(tokenizer, "is_fast", False):
        return np.array([len(text) for text in texts], dtype=np.int64)
    lengths: list[int] = []
    for start in range(0, len(texts), _CHUNK):
        chunk = list(texts[start : start + _CHUNK])
        ids = tokenizer(
            chunk,
            truncation=True,
            max_length=model.max_seq_length,
            return_attention_mask=False,
            return_token_type_ids=False,
        )["input_ids"]
        lengths += map(len, ids)
    return np.array(lengths, dtype=np.int64)
