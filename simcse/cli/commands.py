"""What each command does; :mod:`simcse.cli.main` parses its arguments.

Heavy imports are inside the functions, so that a mistake in an argument is answered at once.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shlex
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import yaml

from simcse.config.describe import Setting, settings_text
from simcse.config.reading import json_schema, load_config, load_sweep
from simcse.config.settings import MTEB, Config, OwnKind, OwnTest, at_commas
from simcse.config.yaml_values import parse_yaml, yaml_problem
from simcse.errors import UserError
from simcse.files import check_outside
from simcse.terminal import complain, silence_libraries

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


def train(parsed: argparse.Namespace) -> None:
    """Train one seed or several, or show what would be done."""
    if parsed.schema:
        if parsed.arguments != ["train", "--schema"]:
            raise UserError("--schema: the same for every config; leave all other arguments out")
        print(json.dumps(json_schema(), indent=2))
        return
    if "LOCAL_RANK" not in os.environ:
        _train(parsed)
        return
    from simcse import distributed  # takes torch, which a mistake in a config need not wait for

    with distributed.session():
        _train(parsed)


def _train(parsed: argparse.Namespace) -> None:
    configs = _configs(parsed)
    quiet_command()
    from simcse.training import several

    command = ["train", *parsed.arguments[1:]]
    if parsed.sweep:
        several.train_sweep(configs, command, dry_run=parsed.dry_run)
    else:
        [config] = configs.values()
        several.train(config, command, dry_run=parsed.dry_run)


def settings(parsed: argparse.Namespace) -> None:
    """Print what can be set, and what it means."""

    def of_terms() -> Iterator[Setting]:
        from simcse.objectives.terms import shipped_settings  # takes torch

        return shipped_settings()

    print(settings_text(parsed.word, of_terms))


def prefetch(parsed: argparse.Namespace) -> None:
    """Download what a config needs."""
    configs = _configs(parsed)
    quiet_command()
    _show_transfers()
    from simcse.publishing.prefetch import prefetch

    for config in configs.values():
        prefetch(config)


def export(parsed: argparse.Namespace) -> None:
    """Write the model as others load it: as it is published, with an ONNX graph, or as a table."""
    quiet_command()
    from simcse.publishing.export import new_folder, write_model_folder

    run, output = Path(parsed.run_folder), Path(parsed.output)
    check_outside(output, run, "the run folder")
    if parsed.quantize and parsed.format != "onnx":
        raise UserError(f"--quantize: of --format onnx, not of {parsed.format}")
    dims, adapter, trusted = parsed.dims, parsed.adapter, parsed.trust_remote_code
    if parsed.format != "sentence-transformers" and (adapter or dims is not None):
        option = "--adapter" if adapter else "--dims"
        raise UserError(f"{option} has no meaning with --format {parsed.format}")
    if adapter and dims is not None:
        raise UserError("--dims has no meaning with --adapter, which leaves the model's width")
    name = output.absolute().name
    with new_folder(output) as folder:
        if parsed.format == "onnx":
            from simcse.publishing.onnx_export import export_onnx

            quantize = parsed.quantize is not None
            export_onnx(run, name, folder, quantize=quantize, trust_remote_code=trusted)
        elif parsed.format == "static":
            from simcse.publishing.static_export import export_static

            export_static(run, folder, trust_remote_code=trusted)
        else:
            write_model_folder(
                run, name, folder, trust_remote_code=trusted, adapter=adapter, dims=dims
            )
    print(f"written to {output}")


def publish(parsed: argparse.Namespace) -> None:
    """Push a run to the Hub, or show what would be pushed."""
    quiet_command()
    _show_transfers()
    from simcse.publishing import publish

    publish.publish(
        Path(parsed.run_folder),
        parsed.name,
        public=parsed.public,
        revision=parsed.revision,
        message=parsed.message,
        attempts=parsed.retries + 1,
        dims=parsed.dims,
        trust_remote_code=parsed.trust_remote_code,
        dry_run=parsed.dry_run,
    )


def mteb_meta(parsed: argparse.Namespace) -> None:
    """Print what mteb's leaderboard wants to know of a published run."""
    quiet_command()
    from simcse.publishing.mteb_meta import mteb_meta

    print(
        mteb_meta(
            Path(parsed.run_folder),
            parsed.name,
            revision=parsed.revision,
            trained_on=parsed.trained_on,
            trust_remote_code=parsed.trust_remote_code,
        )
    )


def how_to_fetch(parsed: argparse.Namespace) -> str:
    """What to do where something is missing and the Hub does not answer."""
    if parsed.run is publish:
        return "nothing here was changed; repeat the command when the Hub answers"
    if parsed.run is not train:
        return "repeat the command when the Hub answers"
    name, words = _config_words(parsed)
    command = shlex.join(["simcse", "prefetch", name, *words, *["--sweep"] * parsed.sweep])
    return f"fetch it when the Hub answers, with: {command}"


def evaluate(parsed: argparse.Namespace) -> None:
    """Score a model and print the table."""
    quiet_command()
    from simcse.data.documents import Documents
    from simcse.encoders.encoder import EMBEDDED_MODEL, fingerprint
    from simcse.encoders.loading import find_model, load_model
    from simcse.encoders.precision import resolved
    from simcse.evaluation import paper_results
    from simcse.evaluation.protocol import PROTOCOL
    from simcse.evaluation.retention import beside, compared, sizes_of
    from simcse.evaluation.scoring import is_hub_name, plan_tasks, score_model
    from simcse.evaluation.table import collapse_lines
    from simcse.reports.runs import CONFIG_FILE, evaluation_folder, finished_run, save_scores
    from simcse.reports.tables import Column, as_text, retention_rows, score_rows

    data = Path(parsed.data) if parsed.data else None
    if data is not None and not data.is_dir():
        raise UserError(f"--data {data}: no such folder")
    if parsed.backend != "torch" and parsed.precision != "float32":
        raise UserError(f"--precision: --backend {parsed.backend} has its own; leave it out")
    rivals = paper_results.find(parsed.against) if parsed.against else []
    name = str(EMBEDDED_MODEL if parsed.model is None else parsed.model)
    file = f"scores-{parsed.dims}.json" if parsed.dims else "scores.json"
    output = _score_file(
        Path(parsed.output or evaluation_folder(name) / file),
        [name, parsed.data],
        overwrite=parsed.overwrite,
    )
    own = [_own_test(word) for word in parsed.own or ()]
    words = _task_words(parsed.tasks)
    plan = plan_tasks([*(words or ()), *own] if words or own else None, data)
    find_model(parsed.model)  # before any text is read
    if parsed.retention and parsed.dims is not None:
        raise UserError("--retention: shows all sizes; leave --dims out")
    is_of_run = "documents" in plan.ours
    if is_of_run and not (Path(name) / CONFIG_FILE).is_file():
        raise UserError(
            f"--tasks documents: {name} is no run folder; a run holds the documents out"
        )
    tasks = plan.load(Documents.of(finished_run(Path(name))[1]) if is_of_run else ())
    consent = parsed.trust_remote_code
    model = load_model(
        parsed.model,
        parsed.pooling,
        parsed.device,
        dims=parsed.dims,
        backend=parsed.backend,
        trust_remote_code=consent,
    )
    precision = resolved(parsed.precision)
    sizes, run = [], None
    if parsed.retention:
        run = finished_run(Path(name))[1] if (Path(name) / CONFIG_FILE).is_file() else None
        sizes = sizes_of(run.objective.dims if run else [], int(model.get_embedding_dimension()))
    if sizes and not compared(tasks.ours):
        raise UserError("--retention: none of these tasks compares embeddings by cosine")
    score = partial(
        score_model,
        batch_size=parsed.batch_size,
        name=name,
        mteb_folder=output.parent / "mteb",
        show_progress=sys.stderr.isatty(),
        precision=precision,
        sizes=sizes,
    )
    overridden = parsed.pooling or parsed.dims
    evaluation = score(model, tasks, hub_name=None if overridden or not is_hub_name(name) else name)
    scores, retained = evaluation.scores, evaluation.retention
    if sizes and run and (start := _start_of(run, trust_remote_code=consent)):
        retained = beside(retained, score(start, replace(tasks, mteb=[])).retention)
    result = {
        "model": name,
        "fingerprint": fingerprint(model),
        "precision": precision,
        "protocol": PROTOCOL,
        "scores": scores,
        "retention": retained,
    }
    save_scores(output, result, evaluation.items)
    shown = _base_name(name) + (f", {parsed.dims} dims" if parsed.dims else "")
    print(as_text(score_rows([Column(shown, [scores])])))
    for line in collapse_lines({shown: scores}):
        print(line)
    if retained:
        print(f"\n{as_text(retention_rows(retained))}")
    if tasks.missing:
        names = ", ".join(tasks.missing)
        print(f"\nnot in {data}, so without an average of seven: {names}")
    if rivals:
        print(f"\n{paper_results.comparison(_base_name(name), scores, rivals)}")
    print(f"\nprotocol: {PROTOCOL}")
    print(f"written to {output}")


def _start_of(run: Config, *, trust_remote_code: bool) -> SentenceTransformer | None:
    """The model that a run began with; ``None`` where it is not to be had any more."""
    from simcse.encoders import encoder
    from simcse.training.untrained import AS_IT_WAS

    settings = {**AS_IT_WAS, "trust_remote_code": trust_remote_code}
    try:
        return encoder.build(run.encoder.model_copy(update=settings))
    except UserError as error:
        complain(f"warning: the untrained encoder is left out: {error}")
        return None


def compare(parsed: argparse.Namespace) -> None:
    """Print the differences of runs, or of settings under several seeds, from the first."""
    from simcse.reports import compare, tables
    from simcse.reports.runs import load_runs, with_own_names

    if len(parsed.runs) < 2:
        raise UserError(f"compare: {parsed.runs[0]} alone; name two runs or more")

    seeds = None
    if parsed.seeds is not None:
        seeds = [seed.strip() for seed in parsed.seeds.split(",")]
        if not all(seeds) or len(set(seeds)) < len(seeds):
            raise UserError(f"--seeds {parsed.seeds!r}: expected different seeds, such as 0,1,2")
    resolved = [Path(run).resolve() for run in parsed.runs]
    if twice := [run for run in parsed.runs if resolved.count(Path(run).resolve()) > 1]:
        raise UserError(f"{twice[0]} and {twice[1]} are the same run")
    sets = with_own_names([load_runs(Path(run), seeds) for run in parsed.runs])
    text = parsed.format == "text"
    found = compare.compare(sets, letters=text)
    table = tables.FORMATS[parsed.format](found.rows)
    print("\n".join([*found.before, "", table, "", *found.after]) if text else table)


def report(parsed: argparse.Namespace) -> None:
    """Write the HTML page and its pictures, or print the table of scores."""
    from simcse.reports import tables
    from simcse.reports.report import write_report
    from simcse.reports.runs import load_sets, with_own_names

    runs = [runs for folder in parsed.runs for runs in load_sets(Path(folder))]
    if parsed.format:
        print(tables.FORMATS[parsed.format](tables.run_rows(with_own_names(runs))))
        return
    page = write_report(runs, Path(parsed.output), overwrite=parsed.overwrite)
    print(f"written to {page}")


def _configs(parsed: argparse.Namespace) -> dict[str, Config]:
    """The one config that the arguments describe, or all of a sweep, by name."""
    name, words = _config_words(parsed)
    return load_sweep(name, words) if parsed.sweep else {name: load_config(name, words)}


def _config_words(parsed: argparse.Namespace) -> tuple[str, list[str]]:
    """Name of the config and the settings given beside it."""
    positional = [word for word in parsed.words if "=" not in word]
    named = [*positional, *([parsed.config] if parsed.config else [])]
    if len(named) > 1:
        raise UserError(f"one config at a time, got {' and '.join(named)}")
    return named[0] if named else "quickstart", [word for word in parsed.words if "=" in word]


def _task_words(text: str | None) -> list[str] | None:
    if text is None:
        return None
    words = [word for word in at_commas(text) if word.removeprefix(MTEB)]
    if not words:
        raise UserError("--tasks: name at least one task")
    return words


def _own_test(word: str) -> OwnTest:
    """A word of ``--own``: the short form, or settings in YAML.

    Raises:
        UserError: It is neither.
    """
    from simcse.evaluation.own import own_test

    try:
        test = own_test(parse_yaml(word) if word.lstrip().startswith("{") else word)
    except yaml.YAMLError as error:
        raise UserError(f"--own {word}: not valid YAML: {yaml_problem(error)}") from error
    if not isinstance(test, OwnTest):
        kinds = ", ".join(get_args(OwnKind))
        raise UserError(f"--own {word}: expected KIND:PATH, with one of the kinds {kinds}")
    return test


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


def _base_name(model: str) -> str:
    return Path(model).absolute().name


def quiet_command() -> None:
    """Keep the libraries' notices out of the output; ours and real warnings stay."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    silence_libraries()


def _show_transfers() -> None:
    """The Hub client's progress bars, on a terminal; transformers turns them off with its own."""
    from huggingface_hub.utils import enable_progress_bars  # type: ignore[attr-defined]

    if sys.stderr.isatty():
        enable_progress_bars()
