"""Settings given beside a config, as ``key=value`` words or a mapping; sweeps over their values."""

from __future__ import annotations

import copy
import itertools
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import yaml

from simcse.config.settings import (
    SECTIONS,
    at_commas,
    objective_from_terms,
    temperature_from_number,
    terms_by_name,
)
from simcse.config.yaml_values import parse_yaml, yaml_problem
from simcse.errors import UserError

Override = tuple[str, Any]
"""A dotted key and its value."""

# They say where the results go and how they are compared, which all runs of a sweep share.
_NEVER_SWEPT = ("output", "seeds", "evaluation", "hub")
_MOST_RUNS = 1_000  # of a sweep
_LONGEST_NAME = 200  # characters of a folder's name; file systems allow 255 bytes


def parse_overrides(overrides: Sequence[str] | Mapping[str, Any]) -> list[Override]:
    """Dotted keys with their values.

    Args:
        overrides: Words such as ``training.steps=10``, whose values are read as YAML; or a mapping
            such as ``{"training.steps": 10}`` or ``{"training": {"steps": 10}}``, whose values are
            taken as they are.

    Raises:
        UserError: A word without ``=``, or invalid YAML in it.
    """
    if isinstance(overrides, Mapping):
        pairs = [(str(key), value) for key, value in overrides.items()]
    else:
        words = [overrides] if isinstance(overrides, str) else overrides
        pairs = [_parse(word) for word in words]
    return [leaf for key, value in pairs for leaf in _leaves(key, value)]


def _leaves(key: str, value: Any) -> Iterator[Override]:
    """The settings of a section one by one, so that those which are not named stay."""
    if isinstance(value, Mapping) and key in SECTIONS:
        for name, inner in value.items():
            yield from _leaves(f"{key}.{name}", inner)
    else:
        yield key, os.fspath(value) if isinstance(value, os.PathLike) else value


def with_overrides(values: dict[str, Any], overrides: Iterable[Override]) -> dict[str, Any]:
    """A copy of a config's plain values in which some are replaced.

    Raises:
        UserError: A key goes through a value that is not a section.
    """
    values = copy.deepcopy(values)
    _write_out_short_forms(values)
    for key, value in overrides:
        _replace(values, key, value)
        _write_out_short_forms(values)
    return values


def combinations(words: Sequence[str]) -> dict[str, list[str]]:
    """Every combination of the values that a sweep's words list, separated by commas.

    Returns:
        A name for each combination's run folder, to its words with one value each.

    Raises:
        UserError: No word has several values, one of them is empty, or two combinations would get
            the same name.
    """
    choices = []
    for word in words:
        key, _, text = word.removeprefix("--").partition("=")
        values = [text] if key.partition(".")[0] in _NEVER_SWEPT else at_commas(text)
        if len(values) > 1 and not all(values):
            raise UserError(f"argument {key}: one of the values in {text!r} is empty")
        choices.append([(key, value) for value in values])
    swept = [choice[0][0] for choice in choices if len(choice) > 1]
    if not swept:
        raise UserError(
            "--sweep: no setting has several values, such as training.learning_rate=1e-4,2e-4 "
            f"({', '.join(_NEVER_SWEPT)} cannot be swept)"
        )
    leaves = [key.rpartition(".")[2] for key in swept]
    labels = {
        key: leaf if leaves.count(leaf) == 1 else key
        for key, leaf in zip(swept, leaves, strict=True)
    }
    found: dict[str, list[str]] = {}
    if (count := math.prod(map(len, choices))) > _MOST_RUNS:
        raise UserError(f"--sweep: {count:,} combinations; allowed are {_MOST_RUNS:,}")
    for pairs in itertools.product(*choices):
        name = ",".join(f"{labels[k]}={_in_a_name(v)}" for k, v in pairs if k in labels)
        if name in found or len(name) > _LONGEST_NAME:
            problem = "is the name of two combinations" if name in found else "is too long"
            raise UserError(f"--sweep: {name} {problem}; each needs a folder of its own")
        found[name] = [f"{key}={value}" for key, value in pairs]
    return found


def _in_a_name(value: str) -> str:
    """The end of a value, without what a folder's name had better not hold."""
    return re.sub(r"[^\w.+-]+", "_", value, flags=re.ASCII).strip("_")[-60:]


def _write_out_short_forms(values: dict[str, Any]) -> None:
    """So that an override changes one setting of a section and keeps the others."""
    if "objective" in values:
        section = values["objective"] = objective_from_terms(values["objective"])
        if isinstance(section, dict) and "temperature" in section:
            section["temperature"] = temperature_from_number(section["temperature"])
        if isinstance(section, dict) and "terms" in section:
            with suppress(ValueError):  # which validation will say
                section["terms"] = terms_by_name(section["terms"])


def _parse(word: str) -> Override:
    key, equals, text = word.removeprefix("--").partition("=")
    if not (equals and all(key.split(".")) and key.isprintable()):
        raise UserError(f"argument {word!r}: expected key=value, such as training.batch_size=128")
    if not text.strip():
        raise UserError(f"argument {key}: no value; null unsets a setting, '' is an empty text")
    return key, _value(key, text)


def _replace(values: dict[str, Any], key: str, value: Any) -> None:
    if key == "objective" and isinstance(value, str | list):
        key = "objective.terms"
    if re.match(r"data\.\d", key) and isinstance(values.setdefault("data", {}), dict):
        values["data"] = [values["data"]]  # the first of several sets
    if re.match(r"views\.\d", key):
        values.setdefault("views", [{}, {}])
    *sections, leaf = key.split(".")
    section: Any = values
    for name in sections:
        place = _place(section, name, key)
        inner = section[place] if isinstance(section, list) else section.setdefault(name, {})
        if not isinstance(inner, dict | list):
            raise UserError(f"argument {key}: {name} is a value, not a section")
        section = inner
    section[_place(section, leaf, key)] = value


def _place(section: dict[str, Any] | list[Any], name: str, key: str) -> Any:
    """Key of a section, or number in a list, which grows by the one after its last.

    Raises:
        UserError: A list has no such number.
    """
    if isinstance(section, dict):
        return name
    if not (re.fullmatch("0|[1-9][0-9]{0,5}", name) and int(name) <= len(section)):
        raise UserError(
            f"argument {key}: {name} stands in a list; name an item by its number, at most "
            f"{len(section)}, such as {key.partition('.')[0]}.0"
        )
    if int(name) == len(section):
        section.append({})
    return int(name)


def _value(key: str, text: str) -> Any:
    """Numbers, true, false, null, quoted text, [lists] and {mappings} as in YAML; other text as is.

    So ``*.txt``, ``a: b`` and ``x #1`` keep the meaning they have as names of files.
    """
    try:
        value = parse_yaml(text)
    except yaml.YAMLError as error:
        if text.lstrip().startswith(("[", "{", "'", '"')):
            problem = yaml_problem(error)
            raise UserError(f"argument {key}: not valid YAML: {problem}") from error
        return text
    marked = text.lstrip().startswith(("[", "'", '"')) or (isinstance(value, dict) and "{" in text)
    return value if marked or value is None or isinstance(value, bool | int | float) else text
