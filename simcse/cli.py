"""The command line: ``simcse train | evaluate | encode | search``.

Thin: parse, call the package, turn errors into one line and an exit status. torch is imported only
once a command has valid arguments.
"""

from __future__ import annotations

import argparse
import errno
import io
import json
import logging
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

from simcse import __version__
from simcse.config import Pooling, config_names, json_schema, load_config
from simcse.errors import UserError, first_line

EXIT_USER_ERROR = 2
EXIT_NO_SPACE = 1
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it

_FULL_DISK = ("No space left on device", "PytorchStreamWriter failed writing", "File too large")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments without the program's name; ``None`` takes the process's.

    Returns:
        Exit status: 0, or 2 for a mistake of the user, 1 for a full disk, 130 after Ctrl-C.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A log file fills while training runs; a console without ↓ or × shows another sign.
        sys.stdout.reconfigure(line_buffering=True, errors="replace")
    parser = _parser()
    parsed, extra = parser.parse_known_args(arguments)
    if extra and (parsed.run is not _train or not all("=" in word for word in extra)):
        parser.error(f"unrecognized arguments: {' '.join(extra)}")
    if extra:  # --training.batch_size=128 means the same as training.batch_size=128
        parsed.words += extra
    try:
        command: Callable[[argparse.Namespace, list[str]], None] = parsed.run
        command(parsed, arguments)
    except UserError as error:
        return _fail(str(error), EXIT_USER_ERROR)
    except KeyboardInterrupt:
        return _fail("interrupted; a training run resumes when started again", EXIT_INTERRUPTED)
    except Exception as error:
        if not _is_full_disk(error):
            if isinstance(error, OSError) and error.filename:
                return _fail(f"{error.filename}: {error.strerror}", EXIT_USER_ERROR)
            raise
        return _fail(
            f"no space left on the disk ({first_line(error)}); make room, then start again: "
            "a training run resumes from its last checkpoint",
            EXIT_NO_SPACE,
        )
    return 0


def _train(parsed: argparse.Namespace, arguments: list[str]) -> None:
    if parsed.schema:
        print(json.dumps(json_schema(), indent=2))
        return
    positional = [word for word in parsed.words if "=" not in word]
    overrides = [word for word in parsed.words if "=" in word]
    named = [*positional, *([parsed.config] if parsed.config else [])]
    if len(named) > 1:
        raise UserError(f"one config at a time, got {' and '.join(named)}")
    config = load_config(named[0] if named else "quickstart", overrides)
    _quiet_libraries()
    from simcse import run

    if parsed.dry_run:
        run.dry_run(config)
    else:
        run.train(config, ["train", *arguments[1:]])


def _evaluate(parsed: argparse.Namespace, arguments: list[str]) -> None:
    _quiet_libraries()
    from simcse.evaluation.protocol import PROTOCOL, evaluate
    from simcse.evaluation.sources import load_geometry, load_task
    from simcse.evaluation.table import score_table
    from simcse.files import write_atomically
    from simcse.loading import DEFAULT_MODEL, load_model

    data = Path(parsed.data) if parsed.data else None
    if data is not None and not data.is_dir():
        raise UserError(f"--data {data}: no such folder")
    names = [name for name in parsed.tasks.split(",") if name]
    if not names:
        raise UserError("--tasks: name at least one task")
    tasks = [load_task(name, data) for name in dict.fromkeys(names)]
    tasks.append(load_geometry(data, dev_only=False))
    model = load_model(parsed.model, parsed.pooling, parsed.device)
    bar = sys.stderr.isatty()
    scores = evaluate(
        lambda texts: model.encode(texts, batch_size=parsed.batch_size, show_progress_bar=bar),
        tasks,
    )
    name = str(parsed.model or DEFAULT_MODEL)
    output = Path(parsed.output or f"outputs/evaluation/{_file_name(name)}/scores.json")
    result = {"model": name, "protocol": PROTOCOL, "scores": scores}
    write_atomically(output, json.dumps(result, indent=2) + "\n")
    print(score_table({Path(name).name: scores}))
    print(f"\nprotocol: {PROTOCOL}")
    print(f"written to {output}")


def _encode(parsed: argparse.Namespace, arguments: list[str]) -> None:
    _quiet_libraries()
    import numpy as np

    from simcse.files import replacing
    from simcse.inference import SimCSE
    from simcse.readers import read_sentences

    output = Path(parsed.output)
    if output.suffix != ".npy":
        raise UserError(f"-o {output}: expected a name that ends in .npy")
    sentences = list(read_sentences(Path(parsed.file), parsed.column))
    if not sentences:
        raise UserError(f"{parsed.file}: no text in it")
    embeddings = SimCSE(parsed.model, parsed.device, pooling=parsed.pooling).encode(
        sentences,
        return_numpy=True,
        normalize_to_unit=not parsed.keep_length,
        batch_size=parsed.batch_size,
        max_length=parsed.max_length,
        show_progress_bar=sys.stderr.isatty(),
    )
    with replacing(output) as temporary, temporary.open("wb") as file:
        np.save(file, np.asarray(embeddings))
    print(
        f"{output}: {embeddings.shape[0]:,} embeddings of width {embeddings.shape[1]}, "
        "row i is row i of the file"
    )


def _search(parsed: argparse.Namespace, arguments: list[str]) -> None:
    source = [option for option in (parsed.corpus, parsed.index) if option]
    if len(source) != 1:
        raise UserError("search needs either --corpus FILE or --index FILE.npz")
    _quiet_libraries()
    from simcse.inference import SimCSE

    simcse = SimCSE(parsed.model, parsed.device, pooling=parsed.pooling)
    if parsed.index:
        simcse.load_index(parsed.index)
    else:
        corpus = Path(parsed.corpus)
        simcse.build_index(corpus, batch_size=parsed.batch_size, column=parsed.column)
        if not simcse.sentences:
            raise UserError(f"--corpus {corpus}: no text in it")
    if parsed.save_index:
        simcse.save_index(parsed.save_index)
    for query in parsed.queries:
        matches = simcse.search(query, threshold=parsed.threshold, top_k=parsed.top_k)
        print(query)
        for sentence, score in matches:
            print(f"  {score:.4f}  {sentence}")
        if not matches:
            print(f"  nothing at or above --threshold {parsed.threshold}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="simcse", description="Train and use SimCSE sentence embeddings."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="train | evaluate | encode | search")

    train = commands.add_parser(
        "train",
        help="train from a config",
        description="Train a sentence encoder. The same command resumes an unfinished run.",
    )
    train.add_argument(
        "words",
        nargs="*",
        metavar="CONFIG | key=value",
        help=f"a YAML file or one of {', '.join(config_names())} (default quickstart), "
        "and settings such as training.batch_size=128",
    )
    train.add_argument("--config", metavar="FILE", help="the config, as an option")
    train.add_argument(
        "--dry-run", action="store_true", help="print config, data counts, parameters, time"
    )
    train.add_argument(
        "--schema", action="store_true", help="print the JSON schema of a config and stop"
    )
    train.set_defaults(run=_train)

    evaluate = commands.add_parser("evaluate", help="score a model", description="Score a model.")
    evaluate.add_argument("model", nargs="?", help="run folder, model folder or Hub name")
    evaluate.add_argument(
        "--data", metavar="FOLDER", help="folder in SentEval's layout (holds STS/, SICK/)"
    )
    evaluate.add_argument(
        "--tasks",
        default="pairs,docstrings",
        help="comma-separated: pairs, docstrings, STS12…STS16, STSB (STSBenchmark), STSB-dev, "
        "SICK-R (default: %(default)s)",
    )
    evaluate.add_argument("-o", "--output", metavar="FILE", help="where scores.json goes")
    _add_model_options(evaluate, batch_size=128)
    evaluate.set_defaults(run=_evaluate)

    encode = commands.add_parser(
        "encode", help="embed a file", description="Embed every row of a file."
    )
    encode.add_argument("file", help="txt (one text a line), csv, tsv, jsonl or parquet, also .gz")
    encode.add_argument("-o", "--output", required=True, metavar="FILE.npy")
    encode.add_argument(
        "--model", help="run folder, model folder or Hub name (default: the quickstart's)"
    )
    encode.add_argument("--column", help="column of a table")
    encode.add_argument("--max-length", type=int, help="cut texts at this many tokens")
    encode.add_argument(
        "--keep-length", action="store_true", help="do not normalise the embeddings"
    )
    _add_model_options(encode, batch_size=64)
    encode.set_defaults(run=_encode)

    search = commands.add_parser(
        "search", help="search a corpus", description="Find similar sentences."
    )
    search.add_argument("queries", nargs="+", metavar="QUERY")
    search.add_argument(
        "--model", help="run folder, model folder or Hub name (default: the quickstart's)"
    )
    search.add_argument(
        "--corpus", metavar="FILE", help="sentences to search, one a line or one column"
    )
    search.add_argument("--column", help="column of a table")
    search.add_argument("--index", metavar="FILE.npz", help="an index saved earlier")
    search.add_argument("--save-index", metavar="FILE.npz", help="save the index for the next time")
    search.add_argument("--top-k", type=_positive, default=5)
    search.add_argument(
        "--threshold", type=float, default=0.0, help="lowest similarity (default: 0)"
    )
    _add_model_options(search, batch_size=64)
    search.set_defaults(run=_search)
    return parser


def _add_model_options(parser: argparse.ArgumentParser, batch_size: int) -> None:
    parser.add_argument("--pooling", choices=get_args(Pooling), help="for a plain encoder only")
    parser.add_argument("--device", help="such as cpu or cuda:0")
    parser.add_argument("--batch-size", type=_positive, default=batch_size)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not a positive number")
    return number


def _quiet_libraries() -> None:
    """Keep the libraries' notices out of the output; ours and real warnings stay."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    from datasets.utils.logging import disable_progress_bar
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    disable_progress_bar()


def _is_full_disk(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            return True
        if any(text in str(error) for text in _FULL_DISK):  # safetensors, torch.save, Arrow
            return True
        error = error.__cause__ or error.__context__
    return False


def _file_name(model: str) -> str:
    return re.sub(r"[\\/:]+", "--", model.strip("/.")) or "model"


def _fail(message: str, status: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return status
