"""A trained model as a table of token embeddings, whose mean is the embedding of a text.

As model2vec (https://github.com/MinishLab/model2vec): every token goes through the model by
itself, the principal components are kept, and frequent tokens count less.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from sklearn.decomposition import PCA
from tokenizers import Tokenizer

from simcse.data.tokens import special_ends
from simcse.encoders.encoder import routes
from simcse.encoders.encoding import embed_ids
from simcse.encoders.layout import use_common_layout
from simcse.encoders.loading import load_trained
from simcse.errors import UserError
from simcse.files import give_usual_mode
from simcse.publishing.export import trained_runs
from simcse.publishing.smaller_models import Form, retention_table

_WIDTH = 256
_SIF = 1e-4  # model2vec's; a token as frequent as this has half the weight
_BATCH_SIZE = 256
_UNUSED = re.compile(r"\[unused\d+\]")


def export_static(run: Path, folder: Path, *, trust_remote_code: bool) -> None:
    """Write a run's model as a ``StaticEmbedding``, and say what it keeps.

    Args:
        run: Run folder, or a folder of seeds: then the best by dev.
        folder: Exists and is empty.
        trust_remote_code: Let the model run code that comes with it.

    Raises:
        UserError: The run is unfinished or damaged, or its model has two towers.
    """
    runs, _ = trained_runs(run)
    source = runs.best.folder
    model = load_trained(source, trust_remote_code=trust_remote_code, device="cpu")
    if routes(model) != [None]:
        raise UserError("--format static: a model with two towers has no single table")
    static = distilled(model)
    static.save_pretrained(str(folder), create_model_card=False)
    use_common_layout(folder, max_length=None, pooler=True, token_types=True)
    [weights] = folder.rglob("*.safetensors")
    give_usual_mode(weights)
    loaded = load_trained(folder, trust_remote_code=False, device="cpu")
    forms = [
        Form("the model", model, source / "model.safetensors"),
        Form("static", loaded, weights),
    ]
    print(retention_table(forms))


def distilled(model: SentenceTransformer) -> SentenceTransformer:
    """The static model; prompts are left behind, since they would be a constant in every mean.

    Args:
        model: With one tower and a fast tokenizer.
    """
    tokenizer = model.tokenizer
    start, end = special_ends(tokenizer)
    around = tokenizer("a")["input_ids"]
    before, after = around[:start], around[len(around) - end :]
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    size = max(vocabulary.values()) + 1
    ids = [np.array([*before, token, *after], dtype=np.int32) for token in range(size)]
    batches = [ids[i : i + _BATCH_SIZE] for i in range(0, size, _BATCH_SIZE)]
    vectors = np.concatenate([embed_ids(model, batch, normalize=False) for batch in batches])
    width = min(_WIDTH, *vectors.shape)
    reduced = PCA(width, random_state=0).fit_transform(vectors)  # (tokens, width), centred
    table = (reduced * _weights(vocabulary, size, tokenizer.all_special_ids)).astype(np.float32)
    splitter = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    splitter.no_truncation()  # of the last call
    return SentenceTransformer(
        modules=[StaticEmbedding(splitter, embedding_weights=table)],
        similarity_fn_name=model.similarity_fn_name,
        device="cpu",
    )


def _weights(vocabulary: dict[str, int], size: int, special: list[int]) -> np.ndarray:
    """Smooth inverse frequencies, ``(tokens, 1)`` (Arora et al., 2017).

    Frequencies are Zipf's of a token's place in the vocabulary, which is sorted by them. Tokens
    that no text has take no place.
    """
    unused = {token for word, token in vocabulary.items() if _UNUSED.fullmatch(word)} | {*special}
    counted = np.array([token not in unused for token in range(size)])
    share = 1 / (1 + np.cumsum(counted))
    share /= share[counted].sum()
    weights: np.ndarray = (_SIF / (_SIF + share))[:, None]
    return weights
