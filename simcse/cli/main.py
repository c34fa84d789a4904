"""The command line: ``simcse train | evaluate | encode | publish …``, see ``simcse --help``.

Thin: parse, call the package, turn errors into one line and an exit status. torch is imported only
once a command has valid arguments.
"""

from __future__ import annotations

import argparse
import errno
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import NoReturn, TextIO, cast, get_args

from simcse import __version__
from simcse.cli import commands
from simcse.config.reading import config_names
from simcse.config.settings import Pooling, Role
from simcse.errors import (
    HubUnreachableError,
    SaidElsewhereError,
    Terminated,
    UserError,
    first_line,
)
from simcse.terminal import VisibleOutput, complain, visible

EXIT_USER_ERROR = 2
EXIT_DISK = 1
EXIT_SAID_ELSEWHERE = 1  # one of several processes, ended by an error of another
EXIT_INTERRUPTED = 130  # 128 + the signal's number, as shells report it: SIGINT,
EXIT_NO_READER = 141  # SIGPIPE,
EXIT_TERMINATED = 143  # SIGTERM

_DISK = [
    getattr(errno, name)
    for name in ("ENOSPC", "EFBIG", "EDQUOT", "EROFS", "EIO")
    if hasattr(errno, name)  # Windows has no quota
]
# How safetensors, Arrow and torch.save say so; the last one's words depend on where a file ended.
_DISK_WORDS = (
    *map(os.strerror, _DISK),
    "PytorchStreamWriter failed writing",
    "inline_container.cc",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments without the program's name; ``None`` takes the process's.

    Returns:
        Exit status: 0, or 2 for a mistake of the user, 1 for a disk that is full or cannot be
        written, 130 after Ctrl-C, 143 after SIGTERM, 141 where nobody reads the output any more.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    for name in ("stdout", "stderr"):  # a shell's >&-, which the libraries do not expect
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A log file fills while training runs; a console without ↓ or × shows another sign.
        sys.stdout.reconfigure(line_buffering=True, errors="replace")
    with redirect_stdout(cast(TextIO, VisibleOutput(sys.stdout))):
        status = _run(arguments)
    if status == EXIT_NO_READER:
        sys.stdout = None  # or Python would complain when it flushes it at the end
    return status


def _run(arguments: list[str]) -> int:
    try:
        Path.cwd()
    except FileNotFoundError:
        return _fail("the working folder is gone; change to one that is there", EXIT_USER_ERROR)
    try:
        parsed = _parse(arguments)
        command: Callable[[argparse.Namespace, list[str]], None] = parsed.run
        with _unwinding_when_terminated():
            command(parsed, arguments)
    except HubUnreachableError as error:
        return _fail(f"{error}; {commands.how_to_fetch(parsed)}", EXIT_USER_ERROR)
    except UserError as error:
        return _fail(str(error), EXIT_USER_ERROR)
    except SaidElsewhereError:
        return EXIT_SAID_ELSEWHERE
    except BrokenPipeError:  # the reader, such as head, has seen enough
        return EXIT_NO_READER
    except KeyboardInterrupt as error:
        resumes = "; a training run resumes when started again" * (arguments[0] == "train")
        return _fail(
            str(error) or f"interrupted{resumes}",
            EXIT_TERMINATED if isinstance(error, Terminated) else EXIT_INTERRUPTED,
        )
    except Exception as error:
        if _is_the_disks(error):
            return _fail(
                f"no space left on the disk, or it fails ({first_line(error)}); mend that, then "
                "start again: a training run resumes from its last checkpoint",
                EXIT_DISK,
            )
        if isinstance(error, OSError) and error.filename:
            return _fail(f"{error.filename}: {error.strerror}", EXIT_USER_ERROR)
        raise
    return 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    """The command and its arguments.

    Raises:
        UserError: An argument is empty.
    """
    parser = _parser()
    parsed, extra = parser.parse_known_args(arguments)
    takes_settings = parsed.run in (commands.train, commands.prefetch)
    if extra and (not takes_settings or not all("=" in word for word in extra)):
        parser.error(f"unrecognized arguments: {' '.join(extra)}")
    if extra:  # --training.batch_size=128 means the same as training.batch_size=128
        parsed.words += extra
    lists = ("seeds", "tasks")  # whose commands say what may be in them
    if empty := [name for name, text in vars(parsed).items() if text == "" and name not in lists]:
        raise UserError(f"argument {empty[0]}: is empty; name something or leave it out")
    return parsed


@contextmanager
def _unwinding_when_terminated() -> Iterator[None]:
    """SIGTERM raises :class:`~simcse.errors.Terminated`, so that scratch files are removed.

    A second one ends the process at once. While a run trains it has handlers of its own
    (:mod:`simcse.training.interruption`).
    """

    def stop(*_: object) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise Terminated

    ours = signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # not ignored, nor another program's
    if not (ours and threading.current_thread() is threading.main_thread()):
        yield
        return
    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is stop:  # one of several processes ignores it now
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        super().error(visible(message))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="simcse", description="Train and use SimCSE sentence embeddings.")
    parser.add_argument("--version", action="version", version=__version__)
    subcommands = parser.add_subparsers(required=True, metavar="COMMAND")

    train = subcommands.add_parser(
        "train",
        help="train from a config",
        description="Train a sentence encoder. The same command resumes an unfinished run.",
    )
    _add_config_words(train)
    train.add_argument(
        "--dry-run", action="store_true", help="print config, data counts, parameters, time"
    )
    train.add_argument(
        "--schema", action="store_true", help="print the JSON schema of a config and stop"
    )
    train.set_defaults(run=commands.train)

    prefetch = subcommands.add_parser(
        "prefetch",
        help="download what a config needs",
        description="Download encoder, text and teacher of a config, so that its run works with "
        "the network off.",
    )
    _add_config_words(prefetch)
    prefetch.set_defaults(run=commands.prefetch)

    evaluate = subcommands.add_parser(
        "evaluate", help="score a model", description="Score a model."
    )
    evaluate.add_argument("model", nargs="?", help="run folder, model folder or Hub name")
    evaluate.add_argument(
        "--data", metavar="FOLDER", help="folder in SentEval's layout (holds STS/, SICK/)"
    )
    evaluate.add_argument(
        "--tasks",
        help="comma-separated: sts, transfer (all of those that --data holds), single ones such as "
        "STS12, STSB, SICK-R, MR, TREC, pairs, docstrings, or any task or benchmark of mteb, with "
        "mteb: in front of names that both have (default: sts with --data, else pairs,docstrings)",
    )
    evaluate.add_argument(
        "--against",
        metavar="NAME",
        help="print published scores beside it: a model or a group such as bert-base-unsup",
    )
    evaluate.add_argument("-o", "--output", metavar="FILE", help="where scores.json goes")
    _add_overwrite(evaluate)
    _add_model_options(evaluate, batch_size=128)
    evaluate.set_defaults(run=commands.evaluate)

    compare = subcommands.add_parser(
        "compare",
        help="compare two runs or sets of seeds",
        description="Differences B - A: single models by a paired bootstrap over sentence pairs, "
        "sets of seeds by Welch's t-test.",
    )
    compare.add_argument("run_a", metavar="RUN_A", help="run folder, or folder of seeds")
    compare.add_argument("run_b", metavar="RUN_B")
    compare.add_argument("--seeds", metavar="0,1,2", help="only these seeds of both")
    compare.set_defaults(run=commands.compare)

    report = subcommands.add_parser(
        "report",
        help="draw runs as one HTML page",
        description="Write curves, geometry, histograms and scores of runs as one HTML page.",
    )
    report.add_argument("runs", nargs="+", metavar="RUN", help="run folder, or folder of seeds")
    report.add_argument(
        "-o",
        "--output",
        default="outputs/report",
        metavar="FOLDER",
        help="gets report.html and the pictures as PNG (default: %(default)s)",
    )
    _add_overwrite(report)
    report.set_defaults(run=commands.report)

    _add_publishing(subcommands)

    encode = subcommands.add_parser(
        "encode", help="embed a file", description="Embed every row of a file."
    )
    encode.add_argument("file", help="txt (one text a line), csv, tsv, jsonl or parquet, also .gz")
    encode.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="FILE",
        help="ends in .npy or .parquet (with the texts)",
    )
    _add_overwrite(encode)
    encode.add_argument(
        "--model", help="run folder, model folder or Hub name (default: the quickstart's)"
    )
    encode.add_argument("--column", help="column of a table")
    encode.add_argument(
        "--role", choices=get_args(Role), help="for models that embed both sides of a search apart"
    )
    encode.add_argument("--max-length", type=int, help="cut texts at this many tokens")
    encode.add_argument(
        "--keep-length", action="store_true", help="do not normalise the embeddings"
    )
    _add_model_options(encode, batch_size=64)
    encode.set_defaults(run=commands.encode)

    search = subcommands.add_parser(
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
    search.add_argument("--index", metavar="FILE", help="an index saved earlier")
    search.add_argument(
        "--save-index",
        metavar="FILE",
        help="save the index for the next time; ends in .safetensors",
    )
    _add_overwrite(search)
    search.add_argument("--top-k", type=_positive, default=5)
    search.add_argument(
        "--threshold", type=float, default=0.0, help="lowest similarity (default: 0)"
    )
    _add_model_options(search, batch_size=64)
    search.set_defaults(run=commands.search)
    return parser


def _add_publishing(subcommands: argparse._SubParsersAction[_Parser]) -> None:
    export = subcommands.add_parser(
        "export",
        help="write a model for other libraries",
        description="Write a finished run's model with its card, as `publish` would push it, or "
        "as an ONNX graph.",
    )
    export.add_argument("run_folder", metavar="RUN", help="run folder, or folder of seeds")
    export.add_argument("output", metavar="OUT", help="folder that is new or empty")
    export.add_argument(
        "--format",
        choices=("sentence-transformers", "onnx"),
        default="sentence-transformers",
        help="onnx needs the extra onnx (default: %(default)s)",
    )
    _add_consent(export)
    export.set_defaults(run=commands.export)

    publish = subcommands.add_parser(
        "publish",
        help="push a model to the Hub",
        description="Create or update a repository on the Hugging Face Hub from a finished run, "
        "then download it and compare embeddings. The token is HF_TOKEN or that of "
        "`hf auth login`. The same command again finishes what was interrupted.",
    )
    publish.add_argument(
        "run_folder", metavar="RUN", help="run folder, or folder of seeds (the best by dev)"
    )
    publish.add_argument("name", metavar="user/name", help="the repository")
    publish.add_argument("--public", action="store_true", help="a new one is private without this")
    publish.add_argument("--revision", metavar="BRANCH", help="push to this branch, not to main")
    publish.add_argument("--message", help="of the commit")
    publish.add_argument(
        "--dry-run", action="store_true", help="print files, sizes and card; send nothing"
    )
    publish.add_argument(
        "--retries",
        type=_not_negative,
        default=5,
        metavar="N",
        help="how often to try again while the Hub does not answer (default: %(default)s)",
    )
    _add_consent(publish)
    publish.set_defaults(run=commands.publish)


def _add_config_words(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "words",
        nargs="*",
        metavar="CONFIG | key=value",
        help=f"a YAML file or one of {', '.join(config_names())} (default quickstart), "
        "and settings such as training.batch_size=128",
    )
    parser.add_argument("--config", metavar="FILE", help="the config, as an option")


def _add_model_options(parser: argparse.ArgumentParser, batch_size: int) -> None:
    parser.add_argument("--pooling", choices=get_args(Pooling), help="for a plain encoder only")
    parser.add_argument("--device", help="such as cpu or cuda:0")
    parser.add_argument("--batch-size", type=_positive, default=batch_size)
    _add_consent(parser)


def _add_consent(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="let the model run code that comes with it; only for authors you trust",
    )


def _add_overwrite(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a file that is there, whatever wrote it"
    )


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not a positive number")
    return number


def _not_negative(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{number} is negative")
    return number


def _is_the_disks(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in _DISK:
            return True
        if any(text in str(error) for text in _DISK_WORDS):
            return True
        error = error.__cause__ or error.__context__
    return False


def _fail(message: str, status: int) -> int:
    complain(f"error: {message}")
    return status
