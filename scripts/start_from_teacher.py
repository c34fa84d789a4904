"""Write an encoder for a distillation to start from: a BERT that is a bag of its teacher's words.

    python scripts/start_from_teacher.py distill_wiki_mini FOLDER [KEY=VALUE ...]
    simcse train distill_wiki_mini [KEY=VALUE ...] encoder.name=FOLDER

It has shape and tokenizer of the config's encoder, a BERT, and other weights:

1. Each token gets a vector, so that the mean over a text's tokens is as close as possible to what
   the teacher makes of the text: ridge regression on the training text. It shrinks towards what the
   teacher makes of the token alone, weighted by frequency as in Arora et al. 2017
   (https://openreview.net/forum?id=SyK00v5xx) and in model2vec
   (https://github.com/MinishLab/model2vec), which decides about rare tokens.
2. These vectors, rotated to their main directions, become the embeddings of a BERT whose layers add
   next to nothing. BERT gives every state the same length, which two further numbers take up, so
   that the others keep theirs; the last layer leaves the two out. Mean pooling gives the mean of 1.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from scipy import sparse
from scipy.linalg import cho_factor, cho_solve, helmert
from sentence_transformers import SentenceTransformer
from transformers import BertModel, PreTrainedTokenizerBase

from simcse.config.reading import load_config
from simcse.config.settings import Config
from simcse.data.rows import load_training_data
from simcse.encoders import encoder
from simcse.errors import UserError
from simcse.objectives.terms import resolve
from simcse.terminal import silence_libraries
from simcse.training.text_embeddings import load_helper, text_embeddings

RIDGE = 0.01  # 0.001 to 0.03 score alike on STS-B dev with 200,000 sentences; 1 is 5 points less
SIF = 1e-3  # probability of a token at which its weight is half
ADDED = 0.02  # what is left of the first weights of the layers' outputs


def main() -> int:
    """Fit the vectors, write the encoder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", help="with objective.teacher and data.form=sentences")
    parser.add_argument("folder", type=Path, help="where the encoder goes")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as of simcse train")
    arguments = parser.parse_args()
    silence_libraries()
    try:
        config = resolve(load_config(arguments.config, arguments.overrides))
        start(config, arguments.folder)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def start(config: Config, folder: Path) -> None:
    """Write the encoder for a config that has a teacher to ``folder``.

    Raises:
        UserError: The folder is there, the config has no teacher or several data sets, its encoder
            is no BERT, or as of a run.
    """
    if folder.exists():
        raise UserError(f"{folder}: is there already; choose another name")
    if config.objective.teacher is None or len(config.sets) > 1:
        raise UserError("objective.teacher: expected one, and one data set")
    student = encoder.build(config.encoder)
    trained = encoder.transformer_of(student).model
    if not isinstance(trained, BertModel):
        raise UserError(f"encoder.name: expected a BERT, got a {type(trained).__name__}")
    tokenizer = student.tokenizer
    texts, targets = bags_and_targets(config, tokenizer)
    share = np.asarray(texts.mean(axis=0)).ravel()  # of each token
    prior = of_single_tokens(load_helper(config.objective, "teacher"), tokenizer)
    prior *= (SIF / (SIF + share))[:, None]
    vectors = fit(texts, targets, prior)
    error = np.square(targets - texts @ vectors).sum(axis=1).mean()
    print(f"{len(targets):,} texts; squared distance to the teacher's embedding {error:.3f}")
    vectors[tokenizer.all_special_ids] = 0
    torch.manual_seed(config.seed)
    network = BertModel(trained.config, add_pooling_layer=False)
    lay_in(network, vectors, share)
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def bags_and_targets(
    config: Config, tokenizer: PreTrainedTokenizerBase
) -> tuple[sparse.csr_array, np.ndarray]:
    """Share of every token in every text, ``(texts, vocabulary)``, and the teacher's embeddings.

    Those are normalised, ``(texts, dim)``.
    """
    [data] = config.sets
    rows, counts = load_training_data(data, tokenizer, config.seed)
    print(counts)
    hashes = np.asarray(rows.with_format("numpy")["text_hash"][:])[:, 0]
    targets = text_embeddings(config, "teacher", np.unique(hashes))(hashes)
    targets /= np.linalg.norm(targets, axis=1, keepdims=True)
    kept = np.ones(len(tokenizer), dtype=bool)
    kept[tokenizer.all_special_ids] = False
    ids = [np.asarray(row[0]) for row in rows["input_ids"]]
    lengths = [len(row) for row in ids]
    text, token = np.repeat(np.arange(len(ids)), lengths), np.concatenate(ids)
    text, token = text[kept[token]], token[kept[token]]
    shape = (len(ids), len(tokenizer))
    counted = sparse.coo_array((np.ones(len(text), np.float32), (text, token)), shape).tocsr()
    return sparse.diags_array(1 / np.maximum(counted.sum(axis=1), 1)) @ counted, targets


def of_single_tokens(
    teacher: SentenceTransformer, tokenizer: PreTrainedTokenizerBase
) -> np.ndarray:
    """What the teacher makes of each token as a text, float32, ``(vocabulary, dim)``."""
    words = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    return teacher.encode([word.removeprefix("##") for word in words], batch_size=256)


def fit(texts: sparse.csr_array, targets: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """Vectors whose means are closest to the targets, by ridge regression towards ``prior``.

    Args:
        texts: Share of every token in every text, ``(texts, vocabulary)``.
        targets: ``(texts, dim)``.
        prior: ``(vocabulary, dim)``; only its directions and relative lengths count.

    Returns:
        ``(vocabulary, dim)``.
    """
    by_prior = texts @ prior
    prior = prior * (np.vdot(by_prior, targets) / np.vdot(by_prior, by_prior))
    gram = (texts.T @ texts).toarray()
    rest = texts.T @ targets - gram @ prior
    gram[np.diag_indices_from(gram)] += RIDGE
    return prior + cho_solve(cho_factor(gram, overwrite_a=True), rest)


def lay_in(network: BertModel, vectors: np.ndarray, share: np.ndarray) -> None:
    """Make a BERT give a text the mean of its tokens' vectors, up to rotation and scale.

    Args:
        network: With first weights, of which those that count are replaced.
        vectors: ``(vocabulary, dim)``; beyond the network's width the directions of least spread
            are lost.
        share: Of each token in the text, ``(vocabulary,)``.
    """
    width = network.config.hidden_size - 2
    _, directions = np.linalg.eigh((vectors * share[:, None]).T @ vectors)
    main = vectors @ directions[:, ::-1][:, : width - 1]
    # Layer normalisation subtracts the mean of a state, so those here have none.
    states = main @ helmert(width)[: main.shape[1]]
    lengths = np.linalg.norm(states, axis=1, keepdims=True)
    longest = np.quantile(lengths[share > 0], 0.999)
    states *= np.minimum(1, longest / np.maximum(lengths, 1e-12))
    rest = np.sqrt(np.maximum(longest**2 - np.square(states).sum(axis=1, keepdims=True), 0) / 2)
    states = np.concatenate([states, rest, -rest], axis=1) * (np.sqrt(width + 2) / longest)
    embeddings = network.embeddings
    embeddings.word_embeddings.weight.data.copy_(torch.from_numpy(states))
    for table in (embeddings.position_embeddings, embeddings.token_type_embeddings):
        table.weight.data.zero_()
    for layer in network.encoder.layer:
        for block in (layer.attention.output, layer.output):
            block.dense.weight.data.mul_(ADDED)
            block.dense.bias.data.zero_()
    network.encoder.layer[-1].output.LayerNorm.weight.data[-2:] = 0


if __name__ == "__main__":
    raise SystemExit(main())
