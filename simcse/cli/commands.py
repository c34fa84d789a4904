"""What each command does; :mod:`simcse.cli.main` parses its arguments.

Heavy imports are inside the functions, so that a mistake in an argument is answered at once.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import shlex
import sys
from pathlib import Path
from typing import get_args

from simcse.config.reading import json_schema, load_config
from simcse.config.settings import TASK_ALIASES, Config, TaskName
from simcse.errors import UserError
from simcse.evaluation.names import GROUPS, MTEB
from simcse.terminal import visible


def train(parsed: argparse.Namespace, arguments: list[str]) -> None:
    """Train one seed or several, or show what would be done."""
    if parsed.schema:
        print(json.dumps(json_schema(), indent=2))
        return
    command = ["train", *arguments[1:]]
    if "LOCAL_RANK" not in os.environ:
        _train(load_config(*_config_words(parsed)), command, dry_run=parsed.dry_run)
        return
    from simcse import distributed  # takes torch, which a mistake in a config need not wait for

    with distributed.session():
        _train(load_config(*_config_words(parsed)), command, dry_run=parsed.dry_run)


def _train(config: Config, command: list[str], *, dry_run: bool) -> None:
    _quiet_libraries()
    from simcse.training import run, seeds

    if config.seeds:
        seeds.train_seeds(config, command, dry_run=dry_run)
    elif dry_run:
        run.dry_run(config)
    else:
        run.train(config, command)


def prefetch(parsed: argparse.Namespace, arguments: list[str]) -> None:
    """Download what a config needs."""
    config = load_config(*_config_words(parsed))
    _quiet_libraries()
    _show_transfers()
    from simcse.publishing.prefetch import prefetch

    prefetch(config)


def export(parsed: argparse.Namespace, arguments: list[str]) -> None:
    """Write the model as others load it, or as an ONNX graph."""
    _quiet_libraries()
    from simcse.publishing.export import export, new_folder

    run, output = Path(parsed.run_folder), Path(parsed.output)
    with new_folder(output) as folder:
        if parsed.format == "onnx":
            from simcse.publishing.onnx_export import export_onnx

            export_onnx(run, folder, trust_remote_code=parsed.trust_remote_code)
        else:
            name = output.absolute().name
            export(run, name, folder, trust_remote_code=parsed.trust_remote_code)
    print(f"written to {output}")


def publish(parsed: argparse.Namespace, arguments: list[str]) -> None:
    """Push a run to the Hub, or show what would be pushed."""
    _quiet_libraries()
    _show_transfers()
    from simcse.publishing import publish

    run = Path(parsed.run_folder)
    if parsed.dry_run:
        publish.dry_run(
            run,
            parsed.name,
            public=parsed.public,
            revision=parsed.revision,
            trust_remote_code=parsed.trust_remote_code,
        )
        return
    publish.publish(
        run,
        parsed.name,
        public=parsed.public,
        revision=parsed.revision,
        message=parsed.message,
        attempts=parsed.retries + 1,
        trust_remote_code=parsed.trust_remote_code,
    )


def how_to_fetch(parsed: argparse.Namespace) -> str:
    """What to do where something is missing and the Hub does not answer."""
    if parsed.run is publish:
        return "nothing here was changed; repeat the command when the Hub answers"
    if parsed.run is not train:
        return "repeat the command when the Hub answers"
    name, overrides = _config_words(parsed)
    command = shlex.join(["simcse", "prefetch", name, *overrides])
    return f"fetch it when the Hub answers, with: {command}"


def evaluate(parsed: argparse.Namespace, arguments: list[str]) -> None:
    """Score a model and print the table."""
    _quiet_libraries()
    from simcse.encoders.encoder import fingerprint
    from simcse.encoders.encoding import encode_by_length
    from simcse.encoders.loading import DEFAULT_MODEL, find_model, load_model
    from simcse.evaluation import published
    from simcse.evaluation.protocol import PROTOCOL, Remembering
    from simcse.evaluation.protocol import evaluate as score
    from simcse.evaluation.sources import load_geometry, load_task, task_names
    from simcse.evaluation.table import collapse_lines, score_table
    from simcse.reports.runs import save_scores

    data = Path(parsed.data) if parsed.data else None
    if data is not None and not data.is_dir():
        raise UserError(f"--data {data}: no such folder")
    rivals = published.find(parsed.against) if parsed.against else []
    name = str(DEFAULT_MODEL if parsed.model is None else parsed.model)
    output = _score_file(
        Path(parsed.output or _evaluation_folder(name) / "scores.json"),
        [name, parsed.data],
        overwrite=parsed.overwrite,
    )
    ours, theirs = _split_tasks(parsed.tasks, has_data=data is not None)
    names, missing = task_names(ours, data)
    mteb_tasks = []
    if theirs:
        from simcse.evaluation.mteb_tasks import evaluate_mteb, find_tasks, revision_of

        mteb_tasks = find_tasks(theirs)
    find_model(parsed.model)  # before any text is read
    tasks = [load_task(task, data) for task in names]
    tasks.append(load_geometry(data, dev_only=False))
    model = load_model(
        parsed.model, parsed.pooling, parsed.device, trust_remote_code=parsed.trust_remote_code
    )
    bar = sys.stderr.isatty()
    encode = Remembering(
        lambda texts: encode_by_length(model, texts, parsed.batch_size, show_progress=bar)
    )
    evaluation = score(encode, tasks)
    scores = evaluation.scores
    if mteb_tasks:
        geometry = scores.pop("geometry")
        is_hub_name = re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not Path(name).exists()
        full_name = name if is_hub_name else None
        scores |= evaluate_mteb(
            model,
            encode,
            full_name or f"local/{_base_name(name)}",
            revision_of(model, None if parsed.pooling else full_name),
            mteb_tasks,
            data,
            output.parent / "mteb",
            parsed.batch_size,
        )
        scores["geometry"] = geometry
    result = {
        "model": name,
        "fingerprint": fingerprint(model),
        "protocol": PROTOCOL,
        "scores": scores,
    }
    save_scores(output, result, evaluation.items)
    columns = {_base_name(name): scores}
    print(score_table(columns))
    for line in collapse_lines(columns):
        print(line)
    if missing:
        print(f"\nnot in {data}, so without an average of seven: {', '.join(missing)}")
    if rivals:
        print(f"\n{published.comparison(_base_name(name), scores, rivals)}")
    print(f"\nprotocol: {PROTOCOL}")
    print(f"written to {output}")


def compare(parsed: argparse.Namespace, arguments: list[str]) -> None:
    """Print the differences of two runs, or of two settings under several seeds."""
    from simcse.reports.compare import comparison_text
    from simcse.reports.runs import load_runs, with_own_names

    seeds = None
    if parsed.seeds is not None:
        seeds = [seed.strip() for seed in parsed.seeds.split(",")]
        if not all(seeds) or len(set(seeds)) < len(seeds):
            raise UserError(f"--seeds {parsed.seeds!r}: expected different seeds, such as 0,1,2")
    if Path(parsed.run_a).resolve() == Path(parsed.run_b).resolve():
        raise UserError(f"{parsed.run_a} and {parsed.run_b} are the same run")
    sets = [load_runs(Path(folder), seeds) for folder in (parsed.run_a, parsed.run_b)]
    print(comparison_text(*with_own_names(sets)))


def report(parsed: argparse.Namespace, arguments: list[str]) -> None:
    """Write the HTML page and its pictures."""
    from simcse.reports.report import write_report
    from simcse.reports.runs import load_runs

    runs = [load_runs(Path(folder)) for folder in parsed.runs]
    page = write_report(runs, Path(parsed.output), overwrite=parsed.overwrite)
    print(f"written to {page}")


def encode(parsed: argparse.Namespace, arguments: list[str]) -> None:
    """Embed every row of a file."""
    _quiet_libraries()
    import numpy as np

    from simcse.data.readers import read_sentences
    from simcse.files import may_write
    from simcse.inference.model import SimCSE
    from simcse.inference.streaming import check_name, encode_to_file

    output = Path(parsed.output)
    check_name(output)
    may_write(output, [parsed.file, parsed.model], overwrite=parsed.overwrite)
    sentences = read_sentences(Path(parsed.file), parsed.column)
    simcse = SimCSE(
        parsed.model,
        parsed.device,
        pooling=parsed.pooling,
        trust_remote_code=parsed.trust_remote_code,
    )

    def embed(texts: list[str]) -> np.ndarray:
        found = simcse.encode(
            texts,
            return_numpy=True,
            normalize_to_unit=not parsed.keep_length,
            batch_size=parsed.batch_size,
            max_length=parsed.max_length,
            show_progress_bar=sys.stderr.isatty(),
            role=parsed.role,
        )
        return np.asarray(found)

    rows, width = encode_to_file(sentences, embed, output, parsed.file)
    print(f"{output}: {rows:,} embeddings of width {width}, row i is row i of the file")


def search(parsed: argparse.Namespace, arguments: list[str]) -> None:
    """Print the most similar sentences of a corpus or an index."""
    source = [option for option in (parsed.corpus, parsed.index) if option]
    if len(source) != 1:
        raise UserError("search needs either --corpus FILE or --index FILE.safetensors")
    if not all(query.strip() for query in parsed.queries):
        raise UserError("search: a query is empty")
    _quiet_libraries()
    from simcse.inference import index
    from simcse.inference.model import SimCSE

    if parsed.save_index:  # before a large corpus is embedded
        inputs = [parsed.corpus, parsed.index, parsed.model]
        index.check_target(Path(parsed.save_index), inputs, overwrite=parsed.overwrite)
    simcse = SimCSE(
        parsed.model,
        parsed.device,
        pooling=parsed.pooling,
        trust_remote_code=parsed.trust_remote_code,
    )
    if parsed.index:
        simcse.load_index(parsed.index)
    else:
        simcse.build_index(parsed.corpus, batch_size=parsed.batch_size, column=parsed.column)
    if parsed.save_index:
        simcse.save_index(parsed.save_index, parsed.overwrite)
    for query in parsed.queries:
        matches = simcse.search(query, threshold=parsed.threshold, top_k=parsed.top_k)
        print(visible(query))
        for sentence, score in matches:
            print(f"  {score:.4f}  {visible(sentence)}")
        if not matches:
            print(f"  nothing at or above --threshold {parsed.threshold}")


def _config_words(parsed: argparse.Namespace) -> tuple[str, list[str]]:
    """Name of the config and the settings given beside it."""
    positional = [word for word in parsed.words if "=" not in word]
    named = [*positional, *([parsed.config] if parsed.config else [])]
    if len(named) > 1:
        raise UserError(f"one config at a time, got {' and '.join(named)}")
    return named[0] if named else "quickstart", [word for word in parsed.words if "=" in word]


_OURS = {name.lower(): name for name in (*get_args(TaskName), *TASK_ALIASES, *GROUPS)}


def _split_tasks(text: str | None, *, has_data: bool) -> tuple[list[str], list[str]]:
    """Names of our tasks and groups, and of mteb's without their prefix."""
    if text is None:
        return (["sts"] if has_data else ["pairs", "docstrings"]), []
    # A benchmark's name may hold a comma: MTEB(eng, v2).
    words = [word.strip() for word in re.split(r",(?![^()]*\))", text)]
    words = [word for word in words if word.removeprefix(MTEB)]
    if not words:
        raise UserError("--tasks: name at least one task")
    ours = [_OURS[word.lower()] for word in words if word.lower() in _OURS]
    theirs = [word.removeprefix(MTEB) for word in words if word.lower() not in _OURS]
    # mteb has a task STSB too, a Chinese one.
    return ours, ["STSBenchmark" if name in ("STSB", "STS-B") else name for name in theirs]


def _score_file(path: Path, inputs: list[str | None], *, overwrite: bool) -> Path:
    from simcse.files import may_write
    from simcse.reports.runs import has_items, is_evaluation, items_file

    if path.suffix != ".json":
        raise UserError(f"-o {path}: expected the name of a file that ends in .json")
    if path.stem == "scores" and (path.parent / "config.yaml").is_file():
        raise UserError(f"-o {path}: a training run keeps its own scores there; choose another")
    may_write(path, inputs, ours=is_evaluation, overwrite=overwrite)
    # The values of single items beside it are replaced with their scores, and nobody else's.
    may_write(items_file(path), inputs, ours=lambda _: has_items(path), overwrite=overwrite)
    return path


def _evaluation_folder(model: str) -> Path:
    """In a run folder, where its card finds the scores; elsewhere under ``outputs``."""
    if (Path(model) / "scores.json").is_file() and (Path(model) / "config.yaml").is_file():
        folder = Path(model) / "evaluation"
        if folder.is_symlink():
            raise UserError(f"{folder}: a link, which no run makes; name a file with -o")
        return folder
    return Path("outputs") / "evaluation" / _file_name(model)


def _base_name(model: str) -> str:
    return Path(model).absolute().name


def _quiet_libraries() -> None:
    """Keep the libraries' notices out of the output; ours and real warnings stay."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    from datasets.utils.logging import disable_progress_bar
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    disable_progress_bar()


def _show_transfers() -> None:
    """The Hub client's progress bars, on a terminal; transformers turns them off with its own."""
    from huggingface_hub.utils import enable_progress_bars  # type: ignore[attr-defined]

    if sys.stderr.isatty():
        enable_progress_bars()


def _file_name(model: str) -> str:
    """A folder's name for a model, another for every model: ``p/q`` becomes ``p--q``.

    Other characters than letters, digits, ``_``, ``.`` and ``-`` are percent-encoded, and so are
    hyphens that would look like the two between the parts.
    """
    parts = [
        re.sub(r"[^\w.-]|^[.-]|-(?=-|$)", lambda found: f"%{ord(found[0]):02X}", part)
        for part in Path(model).parts
    ]
    return "--".join(parts) or "model"
