"""Arguments of the command line: what each command takes, and what is said of those it does not."""

from __future__ import annotations

import argparse
import math
import re
import sys
from typing import NoReturn, get_args

from simcse import __version__
from simcse.cli import commands, using
from simcse.config.finding import config_names
from simcse.config.reading import nearest_settings
from simcse.config.settings import (
    SEPARATOR,
    Backend,
    Config,
    Encoding,
    Pooling,
    Precision,
    Role,
    Vectors,
)
from simcse.errors import UserError
from simcse.terminal import complain

_FORMATS = ("text", "markdown", "latex", "csv", "json")  # the keys of reports.tables.FORMATS


def parse(arguments: list[str]) -> argparse.Namespace:
    """The arguments of a command; those of a config's settings are in ``words``.

    Raises:
        UserError: A setting is given without a value, or another argument is empty.
        SystemExit: Unknown or missing arguments, once they are named; or ``--help``.
    """
    takes_settings = arguments[:1] in (["train"], ["prefetch"], ["mine"])
    words = _with_settings(arguments) if takes_settings else arguments
    parsed, extra = make_parser().parse_known_args(words)
    if takes_settings:  # argparse takes words between options for unknown
        parsed.words += [word for word in extra if not word.startswith("-")]
        extra = [word for word in extra if word.startswith("-")]
    if extra:
        _Parser().error(f"unrecognized argument: {extra[0]}{_hint(extra[0], words)}")
    lists = ("seeds", "tasks")  # whose commands say what may be in them
    if empty := [name for name, text in vars(parsed).items() if text == "" and name not in lists]:
        raise UserError(f"argument {empty[0]}: is empty; name something or leave it out")
    parsed.arguments = arguments
    return parsed


def _with_settings(arguments: list[str]) -> list[str]:
    """``--key=value`` and ``--key value`` as ``key=value``, where the key is one of a config's.

    Raises:
        UserError: Such a key without a value.
    """
    words: list[str] = []
    rest = iter(arguments)
    for word in rest:
        key, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or key.partition(".")[0] not in Config.model_fields:
            words.append(word)
            continue
        if not equals:
            value = next(rest, "--")
            if value.startswith("--"):
                raise UserError(f"argument {word}: expected a value, as in {key}=VALUE")
        words.append(f"{key}={value}")
    return words


def _hint(word: str, arguments: list[str]) -> str:
    """Towards what would work instead of an unknown option."""
    name, command = word.lstrip("-").partition("=")[0], arguments[0]
    if word in ("-v", "-V", "--verbose"):
        return " (nothing more is printed than always; simcse --version prints the version)"
    if word in ("-q", "--quiet", "--silent"):
        return " (to see mistakes only, add > /dev/null)"
    if command == "evaluate" and name == "model":
        return " (the model is named without an option: simcse evaluate MODEL)"
    if command in ("train", "prefetch") and (near := nearest_settings(name)):
        return f" (did you mean {near[0]}=VALUE?)"
    return f" (see simcse {command} --help)"


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong; how a command is used is for ``--help``."""

    def error(self, message: str) -> NoReturn:
        complain(f"error: {message}")
        sys.exit(2)


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands; ``run`` of what it returns is the command's function."""
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

    settings = subcommands.add_parser(
        "settings",
        help="show the settings of a config",
        description="Show every setting of a config: type, default, meaning.",
    )
    settings.add_argument(
        "word",
        nargs="?",
        help="only settings with this in their name, or, where there are none, in their meaning",
    )
    settings.set_defaults(run=commands.settings)

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
        "STS12, STSB, SICK-R, MR, TREC, pairs, python-docs, documents (those that a run held out), "
        "or any task or benchmark of mteb, with mteb: in front of names that both have (default: "
        "sts with --data, else pairs,python-docs)",
    )
    evaluate.add_argument(
        "--own",
        nargs="+",
        metavar="KIND:PATH",
        help="tests on your own data, instead of the default tasks or beside those of --tasks: "
        "graded:FILE, pairs:FILE, retrieval:FOLDER, labelled:FILE, or settings such as "
        "'{kind: graded, file: FILE, columns: [a, b, grade]}' (docs/own_tests.md)",
    )
    evaluate.add_argument(
        "--against",
        metavar="NAME",
        help="print published scores beside it: a model or a group such as bert-base-unsup",
    )
    evaluate.add_argument(
        "--retention",
        action="store_true",
        help="score smaller vectors too: the sizes of objective.dims, or halves, in float32, int8 "
        "and binary",
    )
    evaluate.add_argument("-o", "--output", metavar="FILE", help="where scores.json goes")
    _add_overwrite(evaluate)
    _add_model_options(evaluate, batch_size=128)
    _add_precision(evaluate)
    _add_backend(evaluate)
    evaluate.set_defaults(run=commands.evaluate)

    compare = subcommands.add_parser(
        "compare",
        help="compare runs or sets of seeds",
        description="Differences from the first: single models by a paired bootstrap over the "
        "items of a test, sets of seeds by Welch's t-test.",
    )
    compare.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="run folder, folder of seeds, or any model that simcse evaluate has scored",
    )
    compare.add_argument(
        "--format",
        choices=_FORMATS,
        default="text",
        help="of the table (default: %(default)s, with words on how to read it)",
    )
    compare.add_argument("--seeds", metavar="0,1,2", help="only these seeds of both")
    compare.set_defaults(run=commands.compare)

    report = subcommands.add_parser(
        "report",
        help="draw runs as one HTML page",
        description="Write curves, geometry, histograms and scores of runs as one HTML page.",
    )
    report.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="run folder, folder of seeds, or any model that simcse evaluate has scored",
    )
    report.add_argument(
        "-o",
        "--output",
        default="outputs/report",
        metavar="FOLDER",
        help="gets report.html and the pictures as PNG (default: %(default)s)",
    )
    report.add_argument(
        "--format",
        choices=_FORMATS,
        help="print the table of scores alone, and write no page",
    )
    _add_overwrite(report)
    report.set_defaults(run=commands.report)

    _add_publishing(subcommands)

    _add_using(subcommands)
    return parser


def _add_using(subcommands: argparse._SubParsersAction[_Parser]) -> None:
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
    encode.add_argument(
        "--role", choices=get_args(Role), help="for models that embed both sides of a search apart"
    )
    encode.add_argument("--max-length", type=_whole, help="cut texts at this many tokens")
    encode.add_argument(
        "--keep-length", action="store_true", help="do not normalise the embeddings"
    )
    _add_vectors(encode)
    _add_use_options(encode)
    encode.set_defaults(run=using.encode)

    search = subcommands.add_parser(
        "search", help="search a corpus", description="Find similar sentences."
    )
    search.add_argument("queries", nargs="+", metavar="QUERY")
    search.add_argument(
        "--corpus", metavar="FILE", help="sentences to search, one a line or one column"
    )
    search.add_argument("--index", metavar="FILE", help="an index saved earlier")
    search.add_argument(
        "--save-index",
        metavar="FILE",
        help="save the index for the next time; ends in .safetensors",
    )
    search.add_argument("--top-k", type=_positive, default=5)
    search.add_argument("--json", action="store_true", help="a JSON object for each query")
    search.add_argument("--threshold", type=float, help="lowest similarity (default: none)")
    _add_vectors(search)
    _add_use_options(search)
    search.set_defaults(run=using.search)

    dedup = subcommands.add_parser(
        "dedup",
        help="find near-duplicates in a file",
        description="Print groups of rows that say nearly the same, by number from 0 on.",
    )
    dedup.add_argument("file", help="txt (one text a line), csv, tsv, jsonl or parquet, also .gz")
    dedup.add_argument(
        "--threshold", type=float, default=0.95, help="lowest similarity (default: %(default)s)"
    )
    dedup.add_argument("--json", action="store_true", help="the groups as lists of row numbers")
    dedup.add_argument(
        "-o", "--output", metavar="FILE", help="gets the first text of each group, and all others"
    )
    _add_use_options(dedup)
    dedup.set_defaults(run=using.dedup)

    mine = subcommands.add_parser(
        "mine",
        help="find hard negatives for pairs",
        description="Write the pairs of a file or folder with hard negatives: texts that a model "
        "finds close to the anchor, but less so than the positive.",
    )
    mine.add_argument("file", metavar="INPUT", help="as for data.train: a file, folder or glob")
    mine.add_argument(
        "words", nargs="*", metavar="data.KEY=VALUE", help="settings such as data.form=pairs"
    )
    mine.add_argument("-o", "--output", required=True, metavar="FILE", help="ends in .jsonl")
    _add_model(mine)
    mine.add_argument("--cross-encoder", metavar="MODEL", help="scores the candidates anew")
    mine.add_argument(
        "--negatives", type=_positive, default=3, help="of each row (default: %(default)s)"
    )
    mine.add_argument(
        "--margin", type=_score, help="how far below the positive's the similarity has to be"
    )
    mine.add_argument(
        "--relative-margin",
        type=_score,
        default=0.05,
        help="the same, as a share of the positive's similarity (default: %(default)s)",
    )
    mine.add_argument("--max-score", type=_score, help="highest similarity")
    mine.add_argument(
        "--range-min", type=_not_negative, default=0, help="pass over this many of the closest"
    )
    mine.add_argument("--range-max", type=_positive, help="look at this many of the closest")
    _add_overwrite(mine)
    _add_model_options(mine, batch_size=64)
    mine.set_defaults(run=using.mine, precision="float32", backend="torch")  # margins are small


def _add_publishing(subcommands: argparse._SubParsersAction[_Parser]) -> None:
    export = subcommands.add_parser(
        "export",
        help="write a model for other libraries",
        description="Write a finished run's model with its card, as `publish` would push it; with "
        "an ONNX graph beside it; or as a table of token embeddings.",
    )
    export.add_argument("run_folder", metavar="RUN", help="run folder, or folder of seeds")
    export.add_argument("output", metavar="OUT", help="folder that is new or empty")
    export.add_argument(
        "--format",
        choices=("sentence-transformers", "onnx", "static"),
        default="sentence-transformers",
        help="onnx needs the extra onnx; static is the mean of token embeddings, far faster and "
        "less exact (default: %(default)s)",
    )
    export.add_argument(
        "--quantize",
        choices=("int8",),
        help="with --format onnx: a second graph in int8, and what it costs in scores",
    )
    _add_dims(export)
    export.add_argument(
        "--adapter",
        action="store_true",
        help="of a run with encoder.lora: the adapters alone, which name the model they belong to",
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
    _add_dims(publish)
    _add_consent(publish)
    publish.set_defaults(run=commands.publish)

    meta = subcommands.add_parser(
        "mteb-meta",
        help="print what mteb wants to know of a published model",
        description="Print the ModelMeta of a published run for mteb's leaderboard, and the "
        "commands that submit its results.",
    )
    meta.add_argument("run_folder", metavar="RUN", help="the run that was published")
    meta.add_argument("name", metavar="user/name", help="its repository on the Hub")
    meta.add_argument("--revision", metavar="BRANCH", help="branch or commit (default: main)")
    meta.add_argument(
        "--trained-on",
        metavar="NAMES",
        help="comma-separated: mteb's tasks and data sets that training text from files, or the "
        "encoder's own training data, come from; unknown where that is not known",
    )
    _add_consent(meta)
    meta.set_defaults(run=commands.mteb_meta)


def _add_dims(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dims", type=_whole, metavar="N", help="only the first N numbers of each embedding"
    )


def _add_config_words(parser: argparse.ArgumentParser) -> None:
    parser.allow_abbrev = False  # what is no option may be a setting
    parser.add_argument(
        "words",
        nargs="*",
        metavar="CONFIG | key=value",
        help=f"a YAML file or one of {', '.join(config_names())} (default quickstart), "
        "and settings such as training.batch_size=128",
    )
    parser.add_argument("--config", metavar="FILE", help="the config, as an option")
    parser.add_argument(
        "--sweep",
        action="store_true",
        help="one run for each combination of values such as training.learning_rate=1e-4,2e-4",
    )


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", help="run folder, model folder or Hub name (default: mini-distilled)"
    )


def _add_use_options(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    parser.add_argument("--column", help="column of a table; title+text joins two")
    parser.add_argument(
        "--separator", type=_separator, help="between fields of csv and tsv files; '\\t' is a tab"
    )
    parser.add_argument(
        "--encoding", choices=get_args(Encoding), default="utf-8", help="(default: %(default)s)"
    )
    _add_overwrite(parser)
    _add_model_options(parser, batch_size=64)
    _add_precision(parser)
    _add_backend(parser)


def _add_model_options(parser: argparse.ArgumentParser, batch_size: int) -> None:
    parser.add_argument("--pooling", choices=get_args(Pooling), help="for a plain encoder only")
    parser.add_argument("--device", help="such as cpu or cuda:0")
    _add_dims(parser)
    parser.add_argument("--batch-size", type=_positive, default=batch_size)
    _add_consent(parser)


def _add_vectors(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--vectors",
        choices=get_args(Vectors),
        default="float32",
        help="what embeddings are stored in: int8 and uint8 take a quarter of the bytes, packed "
        "bits (binary, ubinary) a 32nd (default: %(default)s)",
    )


def _add_precision(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--precision",
        choices=get_args(Precision),
        default="float32",
        help="auto is bfloat16 where the hardware has it; faster, and less exact "
        "(default: %(default)s)",
    )


def _add_backend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--backend",
        choices=get_args(Backend),
        default="torch",
        help="onnx and onnx-int8 compute with the graph of simcse export --format onnx "
        "(default: %(default)s)",
    )


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


def _separator(text: str) -> str:
    character = text.replace("\\t", "\t")
    if not re.fullmatch(SEPARATOR, character):
        raise argparse.ArgumentTypeError(f"{text!r} is not one character that separates fields")
    return character


def _score(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"{text} is no finite number")
    return number


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from error


def _positive(text: str) -> int:
    number = _whole(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not a positive number")
    return number


def _not_negative(text: str) -> int:
    number = _whole(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{number} is negative")
    return number
