"""The terms that a config names: their classes, their settings, and what they need of a run."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic.errors import PydanticUserError
from sentence_transformers import SentenceTransformer
from torch import nn

from simcse import objectives
from simcse.config.describe import Setting, settings_of
from simcse.config.reading import in_its_own_words, problems
from simcse.config.settings import Config, Number, TermConfig
from simcse.encoders import encoder
from simcse.errors import UserError, first_line, is_out_of_memory
from simcse.objectives.objective import Batch, Objective

GIVEN = (
    "model", "encoder", "temperature", "width", "teacher_width", "mini_batch_size", "precision",
)  # fmt: skip
"""Arguments of an objective's constructor that are no settings of its own: the model, its section
of the config, the shared temperature, the widths of the embeddings, and how forward passes run."""

SHIPPED: dict[str, type[Objective]] = {
    found.name: found
    for found in vars(objectives).values()
    if isinstance(found, type) and issubclass(found, Objective) and found.name
}
"""The objectives of this package by their short names."""

# A class without a constructor of its own has that of torch's modules.
_COLLECTED = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_OFFERED = {field.name for field in fields(Batch)} | {"anchor", "positive", "hard_negatives"}


def find(name: str) -> type[Objective]:
    """The class of a term.

    Args:
        name: A short name, or ``module:Class`` for a class of the user's own, in a module that can
            be imported or lies in the working folder.

    Raises:
        UserError: There is no such term, or it is not an objective.
    """
    if ":" not in name:
        if name in SHIPPED:
            return SHIPPED[name]
        raise UserError(
            f"objective.terms: {name} is unknown; allowed are {', '.join(SHIPPED)}, or a class of "
            "your own, such as my_module:MyObjective"
        )
    module, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), attribute)):
        file, _, own = name.rpartition(":")
        stem = re.sub(r"\W", "_", re.split(r"[/\\]", file)[-1].removesuffix(".py"))
        raise UserError(
            f"objective.terms: {name}: name the module as Python imports it, such as "
            f"{stem or 'my_module'}:{own if own.isidentifier() else 'MyObjective'} for a file in "
            "the working folder"
        )
    if (folder := str(Path.cwd())) not in sys.path:
        sys.path.append(folder)
    with running(name, "cannot be imported"):
        found = getattr(importlib.import_module(module), attribute)
    if not (isinstance(found, type) and issubclass(found, Objective)):
        raise UserError(f"objective.terms: {name} is not a subclass of simcse.objectives.Objective")
    if any(argument.kind is argument.POSITIONAL_ONLY for argument in _arguments(found)):
        raise UserError(
            f"objective.terms: {name}.forward has positional-only arguments; it is called by name"
        )
    if unknown := [argument for argument in needs(found) if argument not in _OFFERED]:
        raise UserError(
            f"objective.terms: {name}.forward asks for {', '.join(unknown)}; a batch has "
            f"{', '.join(sorted(_OFFERED))}"
        )
    if not needs(found) and found.token_losses is Objective.token_losses:
        raise UserError(f"objective.terms: {name} defines neither forward nor token_losses")
    return found


@contextmanager
def running(name: str, what: str = "has failed") -> Iterator[None]:
    """Turn whatever a class of the user's own raises into one line with its place.

    Raises:
        UserError: Instead. Ours raise what they raise, and out of memory stays what it is.
    """
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        if name in SHIPPED or is_out_of_memory(error):
            raise
        frames = [f for f in traceback.extract_tb(error.__traceback__) if _is_users(f.filename)]
        place = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
        said = first_line(error).removeprefix(f"{type(error).__name__}: ")
        raise UserError(
            f"objective.terms: {name} {what}: {type(error).__name__}: {said}{place}"
        ) from error


def _is_users(file: str) -> bool:
    """Whether a file of a traceback is neither ours nor a library's."""
    ours = Path(objectives.__file__).parent.parent
    return not (file.startswith("<") or ours in Path(file).parents or "site-packages" in file)


def needs(term: type[Objective]) -> dict[str, bool]:
    """What ``forward`` asks for, and whether it can do without; empty where there is none."""
    if term.forward is nn.Module.forward:
        return {}
    return {argument.name: argument.default is None for argument in _arguments(term)}


def _arguments(term: type[Objective]) -> list[inspect.Parameter]:
    """Those of ``forward``, without ``self``."""
    return list(inspect.signature(term.forward).parameters.values())[1:]


def asks_for(config: Config, name: str) -> bool:
    """Whether a term of the config looks at this part of a :class:`Batch`."""
    return any(name in needs(find(term)) for term in config.objective.terms)


def looks_at_tokens(config: Config) -> bool:
    """Whether a term of the config has losses on token states."""
    terms = [find(name) for name in config.objective.terms]
    return any(term.token_losses is not Objective.token_losses for term in terms)


def settings_model(term: type[Objective]) -> type[BaseModel]:
    """The settings of a term: ``weight`` and the arguments of its constructor.

    Raises:
        ValueError: An argument lacks its annotation or its default.
    """
    settings: dict[str, Any] = {}
    for argument in inspect.signature(term, eval_str=True).parameters.values():
        if argument.name in GIVEN or argument.kind in _COLLECTED:
            continue
        if inspect.Parameter.empty in (argument.annotation, argument.default):
            raise ValueError(f"argument {argument.name} needs an annotation and a default")
        kind = Number if argument.annotation is float else argument.annotation
        field = Field(default=argument.default, description=_meaning(term, argument.name))
        settings[argument.name] = (kind, field)
    weight = TermConfig.model_fields["weight"]
    rules = ConfigDict(extra="forbid", strict=True, protected_namespaces=())
    return create_model(
        term.__name__, __config__=rules, weight=(weight.rebuild_annotation(), 1.0), **settings
    )


def _meaning(term: type[Objective], argument: str) -> str:
    """What the docstring says of an argument of the constructor."""
    about = inspect.getdoc(term) or ""
    found = re.search(rf"^ +{argument}: (.*(?:\n {{8,}}.*)*)", about, re.MULTILINE)
    return found[1] if found else ""


def shipped_settings() -> Iterator[Setting]:
    """The settings of the shipped terms, for ``simcse settings``."""
    for name, term in SHIPPED.items():
        schema = in_its_own_words(settings_model(term).model_json_schema())
        del schema["properties"]["weight"]
        yield from settings_of(schema, f"objective.terms.{name}.")


def resolve(config: Config) -> Config:
    """Write out every setting of the terms, and check them and what they need.

    Raises:
        UserError: Unknown terms or settings, values out of range, or a run that does not have what
            a term needs.
    """
    found = {name: find(name) for name in config.objective.terms}
    terms = {
        name: _checked(name, term, config.objective.terms[name]) for name, term in found.items()
    }
    update: dict[str, Any] = {"terms": terms}
    own = [term.default_temperature for term in found.values() if term.default_temperature]
    if own and "temperature" not in config.objective.model_fields_set:
        update["temperature"] = own[0]
    _check_needs(config, found)
    if config.objective.dims:
        _check_any_width(found)
    return config.model_copy(update={"objective": config.objective.model_copy(update=update)})


def describe(config: Config) -> dict[str, dict[str, str]]:
    """What the terms that are classes of the user's own say of themselves, for the model card."""
    own = {name: find(name) for name in config.objective.terms if name not in SHIPPED}
    return {name: {"formula": str(t.formula), "source": str(t.source)} for name, t in own.items()}


def _checked(name: str, term: type[Objective], given: TermConfig) -> TermConfig:
    where = f"objective.terms.{name}"
    try:
        model = settings_model(term)
        settings = model.model_validate(given.model_dump()).model_dump(warnings=False)
        with running(name):
            term.check(**settings)
        if json.loads(json.dumps(settings)) != settings:
            raise ValueError("settings are numbers, text, true, false, null, lists and mappings")
    except ValidationError as error:
        raise UserError("; ".join(problems(error, model, f"{where}."))) from error
    except (ValueError, NameError, TypeError, PydanticUserError) as error:
        raise UserError(f"{where}: {first_line(error)}") from error
    return TermConfig(**settings)


def _check_any_width(found: dict[str, type[Objective]]) -> None:
    on_embeddings = {name: term for name, term in found.items() if needs(term)}
    if not on_embeddings:
        raise UserError(f"objective.dims: {', '.join(found)} looks at no embeddings; leave it out")
    if whole := [name for name, term in on_embeddings.items() if not term.any_width]:
        raise UserError(f"objective.dims: {whole[0]} has no meaning for a part of an embedding")


def check_dims(config: Config, model: SentenceTransformer) -> None:
    """Make sure that ``objective.dims`` are sizes of the embeddings that the trained model gives.

    Raises:
        UserError: They are larger, or of a projection that is for training only.
    """
    dims, widest = config.objective.dims, encoder.width(model)
    if dims and encoder.training_key(model) != encoder.SENTENCE_EMBEDDING:
        raise UserError(
            "objective.dims: the loss reads a projection for training only (encoder.projection), "
            "whose numbers are dropped from the exported model; allowed is none or always"
        )
    if max(dims, default=0) > widest:
        raise UserError(f"objective.dims: {max(dims)} is too wide; allowed is 2 to {widest}")


def _check_needs(config: Config, found: dict[str, type[Objective]]) -> None:
    batch, teacher = config.training.batch_size, config.objective.teacher
    others = [data.form for data in config.sets if data.form != "labelled"]
    for name, term in found.items():
        needed = {argument for argument, optional in needs(term).items() if not optional}
        if "labels" in needed and others:
            raise UserError(f"objective.terms: {name} needs data.form=labelled, got {others[0]}")
        if "teacher" in needed and teacher is None:
            raise UserError(f"objective.terms: {name} needs objective.teacher")
        if batch < term.smallest_batch:
            raise UserError(
                f"training.batch_size: {name} needs {term.smallest_batch} or more, got {batch}"
            )
        if config.encoder.towers == "two" and "model" in inspect.signature(term).parameters:
            raise UserError(f"encoder.towers: {name} needs one encoder for all texts, got two")
    if config.encoder.projection != "none" and not any(map(needs, found.values())):
        raise UserError(
            f"encoder.projection: has no meaning with {', '.join(found)} alone, which looks at no "
            "embedding; allowed is none"
        )
    for kind, needed_by in {"teacher": "teacher", "guide": "mask"}.items():
        if kind in config.objective.helpers and not asks_for(config, needed_by):
            terms = [name for name, term in SHIPPED.items() if needed_by in needs(term)]
            raise UserError(
                f"objective.{kind} has no meaning without a term such as {' or '.join(terms)}"
            )
