"""What the commands do that use a model (encode, search, dedup, mine); heavy imports inside."""

from __future__ import annotations

import argparse
import io
import json
import sys
from contextlib import nullcontext, redirect_stderr
from dataclasses import fields
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simcse.cli.commands import quiet_command
from simcse.config.overrides import parse_overrides, with_overrides
from simcse.config.reading import validate
from simcse.errors import UserError
from simcse.terminal import complain, visible

MANY_BEYOND = 0.01
"""Share of the numbers beyond their ranges above which it is said."""

_FEW_ALIKE = 10  # texts, of which a group may well hold most

if TYPE_CHECKING:
    import numpy as np

    from simcse.inference.model import SimCSE


def encode(parsed: argparse.Namespace) -> None:
    """Embed every row of a file."""
    if parsed.keep_length and parsed.vectors != "float32":
        raise UserError(f"--keep-length: --vectors {parsed.vectors} stores normalised embeddings")
    quiet_command()
    import numpy as np
    from tqdm import tqdm

    from simcse.data.readers import count_lines, read_sentences
    from simcse.encoders.vectors import Quantizer
    from simcse.files import may_write, replacing
    from simcse.inference.streaming import Recent, check_name, encode_to_file

    output = Path(parsed.output)
    check_name(output)
    ranges_file = output.with_suffix(".ranges.npy")
    quantizer, calibrates = Quantizer(parsed.vectors), parsed.vectors in ("int8", "uint8")
    for path in (output, ranges_file) if calibrates else (output,):
        may_write(path, [parsed.file, parsed.model], overwrite=parsed.overwrite)
    sentences = read_sentences(Path(parsed.file), **_table(parsed))
    simcse = _model(parsed)

    first = list(islice(sentences, 1000))
    _warn_of_unknown_signs(first, simcse, parsed.file)

    def embed(texts: list[str]) -> np.ndarray:
        found = simcse.encode(
            texts,
            return_numpy=True,
            normalize_to_unit=not parsed.keep_length,
            batch_size=parsed.batch_size,
            max_length=parsed.max_length,
            show_progress_bar=bar,
            role=parsed.role,
        )
        return quantizer(np.asarray(found))

    recent = Recent(embed)

    def embed_chunk(texts: list[str]) -> np.ndarray:
        goal = bar.n + len(texts)
        found = recent(texts)
        bar.update(goal - bar.n)  # with those of earlier chunks
        return found

    with (
        replacing(ranges_file) if calibrates else nullcontext() as ranges,
        tqdm(total=count_lines(Path(parsed.file)), unit="text", disable=None) as bar,
    ):
        rows, width = encode_to_file(chain(first, sentences), embed_chunk, output, parsed.file)
        if ranges is not None and quantizer.ranges is not None:
            with ranges.open("wb") as file:
                np.save(file, quantizer.ranges)
    kind = "" if parsed.vectors == "float32" else f" ({parsed.vectors})"
    print(f"{output}: {rows:,} embeddings of width {width}{kind}, row i is row i of the file")
    if calibrates:
        print(f"{ranges_file}: what they stand for, lowest and highest value of each dimension")
    if quantizer.beyond > MANY_BEYOND * quantizer.numbers:
        share = quantizer.beyond / quantizer.numbers
        complain(f"warning: {share:.1%} of the numbers are beyond the ranges of the first texts")


def _warn_of_unknown_signs(texts: list[str], simcse: SimCSE, source: str) -> None:
    from simcse.data.tokens import unknown_in, unknown_warning

    if warning := unknown_warning(*unknown_in(texts, simcse.tokenizer), source):
        complain(warning)


def search(parsed: argparse.Namespace) -> None:
    """Print the most similar sentences of a corpus or an index."""
    source = [option for option in (parsed.corpus, parsed.index) if option]
    if len(source) != 1:
        raise UserError("search needs either --corpus FILE or --index FILE.safetensors")
    defaults = {"column": None, "separator": None, "encoding": "utf-8", "vectors": "float32"}
    if parsed.index and any(getattr(parsed, name) != value for name, value in defaults.items()):
        names = ", ".join(f"--{name}" for name in defaults)
        raise UserError(f"{names}: of a --corpus; an --index has been made")
    if not all(query.strip() for query in parsed.queries):
        raise UserError("search: a query is empty")
    quiet_command()
    from simcse.inference import index

    if parsed.save_index:  # before a large corpus is embedded
        inputs = [parsed.corpus, parsed.index, parsed.model]
        index.check_target(Path(parsed.save_index), inputs, overwrite=parsed.overwrite)
    simcse = _model(parsed)
    if parsed.index:
        simcse.load_index(parsed.index)
    else:
        how = {"batch_size": parsed.batch_size, "vectors": parsed.vectors, **_table(parsed)}
        simcse.build_index(parsed.corpus, **how)
        if simcse.index:
            _warn_of_unknown_signs(simcse.index["sentences"], simcse, parsed.corpus)
    if parsed.save_index:
        simcse.save_index(parsed.save_index, parsed.overwrite)
    for query in parsed.queries:
        matches = simcse.search(query, threshold=parsed.threshold, top_k=parsed.top_k)
        if parsed.json:
            found = [{"id": m.id, "text": m.sentence, "similarity": m.similarity} for m in matches]
            print(json.dumps({"query": query, "matches": found}))
            continue
        print(visible(query))
        for sentence, score in matches:
            print(f"  {score:.4f}  {visible(sentence)}")
        if not matches:
            print(f"  nothing at or above --threshold {parsed.threshold}")


def dedup(parsed: argparse.Namespace) -> None:
    """Print groups of near-duplicates of a file; write it without them."""
    quiet_command()
    from simcse.data.readers import read_sentences
    from simcse.files import may_write, write_atomically

    output = Path(parsed.output) if parsed.output else None
    if output is not None:
        if output.suffix != ".txt":
            raise UserError(f"{output}: expected a name that ends in .txt, a text a line")
        may_write(output, [parsed.file, parsed.model], overwrite=parsed.overwrite)
    texts = list(read_sentences(Path(parsed.file), **_table(parsed)))
    simcse = _model(parsed)
    groups = simcse.duplicates(
        parsed.file, parsed.threshold, batch_size=parsed.batch_size, **_table(parsed)
    )
    repeats = {row for group in groups for row in group[1:]}
    if parsed.json:
        print(json.dumps(groups))
    else:
        for group in groups:
            print("\n".join(f"{row:>8}  {visible(texts[row])}" for row in group), end="\n\n")
        print(f"{len(groups):,} groups; {len(repeats):,} of {len(texts):,} rows repeat another")
        most = max((len({texts[row] for row in group}) for group in groups), default=0)
        if most > max(_FEW_ALIKE, len(set(texts)) / 2):
            complain(
                f"warning: {most:,} different texts are one group: the model finds nearly all "
                "alike; raise --threshold, or take another model"
            )
    if output is not None:
        kept = [" ".join(text.splitlines()) for row, text in enumerate(texts) if row not in repeats]
        write_atomically(output, "".join(f"{text}\n" for text in kept if text))


def mine(parsed: argparse.Namespace) -> None:
    """Write rows with hard negatives that a model finds."""
    if other := [word for word in parsed.words if not word.startswith("data.")]:
        raise UserError(f"mine: {other[0]} is no setting of the data, such as data.form=pairs")
    values = with_overrides({"data": {"train": [parsed.file]}}, parse_overrides(parsed.words))
    [data, *others] = validate(values, "arguments").sets
    if others:
        raise UserError("mine: one data set at a time")
    if data.train != [parsed.file]:
        raise UserError(f"mine: data.train: the text is INPUT, here {parsed.file}; leave it out")
    if parsed.cross_encoder is None and abs(parsed.max_score or 0) > 1:
        raise UserError(f"--max-score: expected a cosine from -1 to 1, got {parsed.max_score}")
    if data.form == "sentences" and parsed.max_score is None:
        raise UserError(
            "mine: --max-score is needed where texts are their own positives, whose similarity is "
            "1, such as --max-score 0.8"
        )
    output = Path(parsed.output)
    if output.suffix != ".jsonl":
        raise UserError(f"-o {output}: expected a name that ends in .jsonl")
    quiet_command()
    from simcse.encoders.encoder import source_of
    from simcse.encoders.gate import Origin, load_cross_encoder
    from simcse.files import may_write
    from simcse.inference.mining import Rules, mine, pairs_of, write_rows

    may_write(output, [parsed.file, parsed.model], overwrite=parsed.overwrite)
    pairs = pairs_of(data)
    model, other_model = _model(parsed), None
    if parsed.cross_encoder:
        label = f"--cross-encoder {parsed.cross_encoder}"
        path = source_of(parsed.cross_encoder, label=label)
        consent, trusted = "--trust-remote-code", parsed.trust_remote_code
        other_model = load_cross_encoder(Origin(label, path, consent, trusted))
    rules = Rules(**{field.name: getattr(parsed, field.name) for field in fields(Rules)})
    with nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO()):  # its bars
        rows = mine(pairs, model.model, rules, parsed.batch_size, other_model)
    write_rows(rows, output)
    print(
        f"{output}: {len(rows):,} of {len(pairs):,} rows ({len(rows) / len(pairs):.1%}) have "
        f"{rules.negatives} hard negatives; train on it with data.form=pairs"
    )


def _table(parsed: argparse.Namespace) -> dict[str, Any]:
    """How to read a file, by the names that all who read one give it."""
    return {name: getattr(parsed, name) for name in ("column", "separator", "encoding")}


def _model(parsed: argparse.Namespace) -> SimCSE:
    from simcse.inference.model import SimCSE

    return SimCSE(
        parsed.model,
        parsed.device,
        pooling=parsed.pooling,
        precision=parsed.precision,
        dims=parsed.dims,
        backend=parsed.backend,
        trust_remote_code=parsed.trust_remote_code,
    )
