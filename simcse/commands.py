"""What each command does; :mod:`simcse.cli` parses its arguments.

Heavy imports are inside the functions, so that a mistake in an argument is answered at once.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
from pathlib import Path
from typing import get_args

from simcse.config import TASK_ALIASES, TaskName, json_schema, load_config
from simcse.errors import UserError
from simcse.evaluation.names import GROUPS, MTEB


def train(parsed: argparse.Namespace, arguments: list[str]) -> None:
    """Train one seed or several, or show what would be done."""
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
    from simcse import run, seeds

    command = ["train", *arguments[1:]]
    if parsed.dry_run:
        run.dry_run(seeds.seed_config(config, config.seeds[0]) if config.seeds else config)
        if config.seeds:
            print(f"that is one of {len(config.seeds)} seeds")
    elif config.seeds:
        seeds.train_seeds(config, command)
    else:
        run.train(config, command)


def evaluate(parsed: argparse.Namespace, arguments: list[str]) -> None:
    """Score a model and print the table."""
    _quiet_libraries()
    from simcse.evaluation import published
    from simcse.evaluation.protocol import PROTOCOL
    from simcse.evaluation.protocol import evaluate as score
    from simcse.evaluation.sources import load_geometry, load_task, task_names
    from simcse.evaluation.table import collapse_lines, score_table
    from simcse.files import write_atomically
    from simcse.loading import DEFAULT_MODEL, load_model
    from simcse.runs import save_items

    data = Path(parsed.data) if parsed.data else None
    if data is not None and not data.is_dir():
        raise UserError(f"--data {data}: no such folder")
    rivals = published.find(parsed.against) if parsed.against else []
    # A benchmark's name may hold a comma: MTEB(eng, v2).
    words = [word.strip() for word in re.split(r",(?![^()]*\))", parsed.tasks or "")]
    words = [word for word in words if word]
    if parsed.tasks is not None and not words:
        raise UserError("--tasks: name at least one task")
    words = words or (["sts"] if data else ["pairs", "docstrings"])
    ours = [word for word in words if TASK_ALIASES.get(word, word) in _OURS]
    theirs = [word.removeprefix(MTEB) for word in words if word not in ours]
    names, missing = task_names(ours, data)
    tasks = [load_task(name, data) for name in names]
    tasks.append(load_geometry(data, dev_only=False))
    mteb_tasks = []
    if theirs:
        from simcse.evaluation.mteb_tasks import evaluate_mteb, find_tasks, revision_of

        mteb_tasks = find_tasks(theirs)
    model = load_model(parsed.model, parsed.pooling, parsed.device)
    bar = sys.stderr.isatty()
    evaluation = score(
        lambda texts: model.encode(texts, batch_size=parsed.batch_size, show_progress_bar=bar),
        tasks,
    )
    name = str(parsed.model or DEFAULT_MODEL)
    output = Path(parsed.output or f"outputs/evaluation/{_file_name(name)}/scores.json")
    scores = evaluation.scores
    if mteb_tasks:
        geometry = scores.pop("geometry")
        is_hub_name = re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not Path(name).exists()
        full_name = name if is_hub_name else None
        scores |= evaluate_mteb(
            model,
            full_name or f"local/{Path(name).resolve().name}",
            revision_of(model, None if parsed.pooling else full_name),
            mteb_tasks,
            data,
            output.parent / "mteb",
            parsed.batch_size,
        )
        scores["geometry"] = geometry
    save_items(output.with_suffix(".npz"), evaluation.items)
    result = {"model": name, "protocol": PROTOCOL, "scores": scores}
    write_atomically(output, json.dumps(result, indent=2) + "\n")
    columns = {Path(name).name: scores}
    print(score_table(columns))
    for line in collapse_lines(columns):
        print(line)
    if missing:
        print(f"\nnot in {data}, so without an average of seven: {', '.join(missing)}")
    if rivals:
        print(f"\n{published.comparison(Path(name).name, scores, rivals)}")
    print(f"\nprotocol: {PROTOCOL}")
    print(f"written to {output}")


def compare(parsed: argparse.Namespace, arguments: list[str]) -> None:
    """Print the differences of two runs, or of two settings under several seeds."""
    from simcse.evaluation.compare import comparison_text
    from simcse.runs import load_runs

    a, b = (load_runs(Path(folder)) for folder in (parsed.run_a, parsed.run_b))
    if parsed.seeds:
        a, b = (runs.only(parsed.seeds.split(",")) for runs in (a, b))
    print(comparison_text(a, b))


def report(parsed: argparse.Namespace, arguments: list[str]) -> None:
    """Write the HTML page and its pictures."""
    from simcse.report import write_report
    from simcse.runs import load_runs

    page = write_report([load_runs(Path(folder)) for folder in parsed.runs], Path(parsed.output))
    print(f"written to {page}")


def encode(parsed: argparse.Namespace, arguments: list[str]) -> None:
    """Embed every row of a file."""
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


def search(parsed: argparse.Namespace, arguments: list[str]) -> None:
    """Print the most similar sentences of a corpus or an index."""
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


_OURS = {*get_args(TaskName), *GROUPS}


def _quiet_libraries() -> None:
    """Keep the libraries' notices out of the output; ours and real warnings stay."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    from datasets.utils.logging import disable_progress_bar
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    disable_progress_bar()


def _file_name(model: str) -> str:
    return re.sub(r"[\\/:]+", "--", model.strip("/.")) or "model"
