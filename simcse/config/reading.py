"""Configs: found by name, read from YAML, overridden, validated.

A run is described by one YAML file (see ``configs/``) plus ``key=value`` overrides. Every mistake
is reported at once, each with its dotted path; nothing heavier than pydantic and PyYAML is
imported here, so that a typing error is answered at once.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from simcse.config.finding import BASE, find_config, values_with_bases
from simcse.config.overrides import combinations, parse_overrides, with_overrides
from simcse.config.settings import Config, leaves
from simcse.config.yaml_values import read_values
from simcse.errors import UserError
from simcse.typed import typed

# pydantic's mark of a key, and tags of a union's members.
_NOT_KEYS = ("[key]", "[name]", "[own]", "[set]", "[sets]")
_BOUNDS = {
    "ge": "minimum",
    "gt": "exclusiveMinimum",
    "le": "maximum",
    "lt": "exclusiveMaximum",
}


@typed
def load_config(
    name_or_path: str | Path = "quickstart",
    overrides: str | Sequence[str] | Mapping[str, Any] = (),
) -> Config:
    """Read a YAML config, apply overrides and validate the result.

    Args:
        name_or_path: A YAML file, or the bare name of a shipped config.
        overrides: From Python a mapping such as ``{"training.steps": 10}`` or ``{"training":
            {"steps": 10}}``; from the command line words such as ``training.learning_rate=5e-5``,
            whose value is read as YAML and whose leading ``--`` is ignored.

    Raises:
        UserError: Unreadable YAML, unknown keys (with the nearest valid ones), wrong types or
            values out of range; one line names every problem, and tells those of the file from
            those of the overrides.
    """
    path = find_config(str(name_or_path))
    own = values_with_bases(path)
    default = {"output": f"outputs/{path.stem}"}
    if own.get("output") is None:
        own |= default
    pairs = parse_overrides(overrides)
    values = with_overrides(own, pairs)
    if values.get("output") is None:
        values |= default
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        found = list(problems(error, Config))
        of_the_file = [problem for problem in found if problem in _mistakes(own)]
        of_overrides = [problem for problem in found if problem not in of_the_file]
        lines = [f"{path}: {'; '.join(of_the_file)}"] if of_the_file else []
        lines += [f"arguments: {'; '.join(of_overrides)}"] if of_overrides else []
        if any(f"got {value!r}" in lines[-1] for _, value in pairs if "," in str(value)):
            lines[-1] += " (to try several values, add --sweep)"
        raise UserError("; ".join(lines)) from error


def load_sweep(name_or_path: str, words: Sequence[str]) -> dict[str, Config]:
    """The configs of a sweep, one for each combination of the values that the words list.

    Returns:
        Name of the run folder, inside of the ``output`` of all, to its config.

    Raises:
        UserError: As :func:`load_config` and :func:`~simcse.config.overrides.combinations`; two
            combinations are the same settings.
    """
    configs: dict[str, Config] = {}
    for name, own in combinations(words).items():
        config = load_config(name_or_path, own)
        config = config.model_copy(update={"output": str(Path(str(config.output)) / name)})
        for other, earlier in configs.items():
            if not differences(earlier.model_copy(update={"output": config.output}), config):
                raise UserError(f"--sweep: {other} and {name} are the same settings")
        configs[name] = config
    return configs


def read_config(path: Path) -> Config:
    """The resolved config that a run folder holds, which has every setting written out.

    Raises:
        UserError: As :func:`load_config`, or it lacks settings.
    """
    values = read_values(path)
    config = validate(values, where=str(path))
    if missing := [key for key in config.settings() if key not in dict(leaves(values))]:
        more = f" and {len(missing) - 1} more settings" if len(missing) > 1 else ""
        raise UserError(
            f"{path}: without {missing[0]}{more}; cut short, or no run's, or of another version of "
            "simcse-trainer"
        )
    return config


def validate(values: Any, where: str) -> Config:
    """Check plain values against :class:`Config`; ``where`` names them in the error line."""
    if not isinstance(values, dict):
        raise UserError(f"{where}: expected a mapping of settings, found {type(values).__name__}")
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{where}: {'; '.join(problems(error, Config))}") from error


def _mistakes(values: dict[str, Any]) -> list[str]:
    try:
        Config.model_validate(values)
    except ValidationError as error:
        return list(problems(error, Config))
    return []


def to_yaml(config: Config) -> str:
    """The resolved config as YAML, every field written out, keys in declaration order."""
    return yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True)


def differences(old: Config, new: Config) -> list[str]:
    """Lines ``key: old -> new`` for every setting in which two configs differ.

    The section ``hub`` does not count: it says nothing about the model.
    """
    before, after = old.settings(), new.settings()
    return [  # the terms of an objective are keys that one of the two may lack
        f"{key}: {before.get(key, 'unset')} -> {after.get(key, 'unset')}"
        for key in dict.fromkeys([*before, *after])
        if (key in before, before.get(key)) != (key in after, after.get(key))
        and not key.startswith("hub.")
    ]


def settings_digest(config: Config) -> str:
    """SHA-256 of all settings but ``output``, since folders are moved, and the section ``hub``."""
    settings = config.settings().items()
    kept = {key: value for key, value in settings if key != "output" and not key.startswith("hub.")}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def json_schema() -> dict[str, Any]:
    """JSON schema of a config file, for editors that complete and check YAML."""
    schema: dict[str, Any] = in_its_own_words(Config.model_json_schema())
    return {**schema, "properties": {"base": BASE, **schema["properties"]}}


def in_its_own_words(schema: Any) -> Any:
    """With JSON schema's names of bounds, which pydantic leaves as they are where it converts."""
    if isinstance(schema, list):
        return [in_its_own_words(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    names = {} if "properties" in schema else _BOUNDS
    return {names.get(key, key): in_its_own_words(value) for key, value in schema.items()}


def problems(error: ValidationError, model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """What is wrong with values, each with its key, in words.

    Args:
        error: From validating them.
        model: What they were validated against.
        prefix: Of their keys.
    """
    for item in error.errors():
        unknown = item["type"] == "extra_forbidden"  # whose last part is the user's own
        where, last = item["loc"][:-1], item["loc"][-1:]
        location = [part for part in where if part not in _NOT_KEYS]
        location += [part for part in last if unknown or part not in _NOT_KEYS]
        place = prefix + ".".join(map(str, location))
        place = place if place.isprintable() else repr(place)
        if unknown:
            yield f"{place}: unknown key{_nearest(model, location)}"
            continue
        message = f"{_rule(item['msg'])}, got {reprlib.repr(item['input'])}"
        if item["type"] == "value_error":
            message = str(item["ctx"]["error"])
        yield f"{place}: {message}" if place else message


def _rule(message: str) -> str:
    message = re.sub(r" or instance of \w+$", "", message.replace("Input should", "should"))
    message = message.replace(" after validation", "")  # in what is said of the length of a list
    return message[0].lower() + message[1:]


def _nearest(section: type[BaseModel], location: Sequence[int | str]) -> str:
    for part in location[:-1]:
        if isinstance(part, str):  # else an item of a list
            inner = _section_in(section.model_fields[part].annotation)
            if inner is None:
                return ""
            section = inner
    name, names = str(location[-1]), list(section.model_fields)
    elsewhere = [key for key in Config().settings() if key.endswith(f".{name}")]
    near = elsewhere or difflib.get_close_matches(name, names, n=2, cutoff=0.6)
    near = near[:3] or nearest_settings(name)
    return f" (did you mean {' or '.join(near)}?)" if near else f" (allowed: {', '.join(names)})"


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """The section that an annotation holds, such as that of ``list[ViewConfig]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_section_in, get_args(annotation))), None)


def nearest_settings(name: str) -> list[str]:
    """Dotted keys of settings, in whatever section, whose own name is or resembles this one."""
    leaves = {key.rpartition(".")[2]: key for key in reversed(Config().settings())}
    leaf = name.replace("-", "_").rpartition(".")[2]
    return [leaves[near] for near in difflib.get_close_matches(leaf, leaves, n=2, cutoff=0.75)]
