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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import (
    BaseModel,
    ValidationError,
)

from simcse.config.settings import Config, objective_from_terms, temperature_from_number
from simcse.errors import UserError, first_line

# The clone keeps the configs beside the package, a wheel carries them inside it.
_PACKAGE = Path(__file__).parent.parent
CONFIG_FOLDERS = (_PACKAGE / "configs", _PACKAGE.parent / "configs")


def config_names() -> list[str]:
    """Names of the configs that come with the project, such as ``quickstart``."""
    return sorted({path.stem for folder in CONFIG_FOLDERS for path in folder.glob("*.yaml")})


def find_config(name_or_path: str) -> Path:
    """Find a config by path, or by the bare name of one that comes with the project.

    Raises:
        UserError: There is no such file; the message lists the names that exist.
    """
    path = Path(name_or_path)
    if path.is_file():
        return path
    # `configs/quickstart.yaml` works from an installed wheel too, where no such folder exists.
    shipped_form = path.parent in (Path(), Path("configs")) and path.suffix in ("", ".yaml")
    for folder in CONFIG_FOLDERS if shipped_form else ():
        if (shipped := folder / f"{path.stem}.yaml").is_file():
            return shipped
    raise UserError(f"config {name_or_path}: no such file; shipped are {', '.join(config_names())}")


def load_config(name_or_path: str, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML config, apply ``key=value`` overrides and validate the result.

    Args:
        name_or_path: A YAML file, or the bare name of a shipped config.
        overrides: Items such as ``training.learning_rate=5e-5``; the value is read as YAML, a
            leading ``--`` is ignored.

    Raises:
        UserError: Unreadable YAML, unknown keys (with the nearest valid ones), wrong types or
            values out of range; one line names every problem.
    """
    path = find_config(name_or_path)
    values = read_values(path)
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a mapping of settings, found {type(values).__name__}")
    _write_out_short_forms(values)
    for override in overrides:
        _apply_override(values, override)
    if values.get("output") is None:
        values["output"] = f"outputs/{path.stem}"
    return validate(values, where=str(path))


def read_config(path: Path) -> Config:
    """The resolved config that a run folder holds, which has every setting written out.

    Raises:
        UserError: As :func:`load_config`, or it lacks settings.
    """
    values = read_values(path)
    config = validate(values, where=str(path))
    if missing := [key for key in config.settings() if not _holds(values, key)]:
        more = f" and {len(missing) - 1} more settings" if len(missing) > 1 else ""
        raise UserError(
            f"{path}: without {missing[0]}{more}; cut short, or no run's, or of another version of "
            "simcse-trainer"
        )
    return config


def _holds(values: Any, key: str) -> bool:
    for part in key.split("."):
        if not isinstance(values, dict) or part not in values:
            return False
        values = values[part]
    return True


def read_values(path: Path) -> Any:
    """Plain values of a YAML file.

    Raises:
        UserError: It is not UTF-8 text or not YAML; with the line.
    """
    try:
        return parse_yaml(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start})") from error
    except yaml.YAMLError as error:
        raise UserError(
            f"{_yaml_place(path, error)}: not valid YAML: {_yaml_problem(error)}"
        ) from error


def validate(values: Any, where: str) -> Config:
    """Check plain values against :class:`Config`; ``where`` names them in the error line."""
    if not isinstance(values, dict):
        raise UserError(f"{where}: expected a mapping of settings, found {type(values).__name__}")
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(_problems(error))
        raise UserError(f"{where}: {problems}") from error


class _Loader(yaml.SafeLoader):
    """Plain values only, and a key only once: YAML's own loader keeps the last silently.

    No aliases: a few lines of them can stand for more values than memory holds.
    """

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            problem = f"aliases such as *{event.anchor} are not allowed, write the value out"
            raise yaml.composer.ComposerError(None, None, problem, event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    problem = f"the key {key.value!r} is given twice"
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _printable_int(loader: _Loader, node: yaml.ScalarNode) -> int:
    value = loader.construct_yaml_int(node)
    str(value)  # raises where it is too long to be shown in a message
    return value


_Loader.add_constructor("tag:yaml.org,2002:int", _printable_int)


def parse_yaml(text: str) -> Any:
    """Values of a YAML text.

    Raises:
        yaml.YAMLError: It is not YAML, a key is given twice, or a value cannot be made.
    """
    try:
        return yaml.load(text, _Loader)
    except RecursionError as error:
        raise yaml.YAMLError("nested too deeply") from error
    except (ValueError, LookupError, AttributeError, TypeError) as error:
        # The 45th of a month, a number of 5,000 digits, a tag on what it does not fit.
        raise yaml.YAMLError(f"a value that cannot be read: {first_line(error)}") from error


def to_yaml(config: Config) -> str:
    """The resolved config as YAML, every field written out, keys in declaration order."""
    return yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True)


def differences(old: Config, new: Config) -> list[str]:
    """Lines ``key: old -> new`` for every setting in which two configs differ.

    The section ``hub`` does not count: it says nothing about the model.
    """
    before, after = old.settings(), new.settings()
    return [
        f"{key}: {before[key]} -> {after[key]}"
        for key in before
        if before[key] != after[key] and not key.startswith("hub.")
    ]


def settings_digest(config: Config) -> str:
    """SHA-256 of all settings but ``output``, since folders are moved, and the section ``hub``."""
    settings = config.settings().items()
    kept = {key: value for key, value in settings if key != "output" and not key.startswith("hub.")}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def json_schema() -> dict[str, Any]:
    """JSON schema of a config file, for editors that complete and check YAML."""
    return Config.model_json_schema()


def _write_out_short_forms(values: dict[str, Any]) -> None:
    """So that an override changes one setting of a section and keeps the others."""
    if "objective" in values:
        section = values["objective"] = objective_from_terms(values["objective"])
        if isinstance(section, dict) and "temperature" in section:
            section["temperature"] = temperature_from_number(section["temperature"])


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.removeprefix("--").partition("=")
    if not equals or not key:
        raise UserError(
            f"argument {override!r}: expected key=value, such as training.batch_size=128"
        )
    if not text.strip():
        shown = key if key.isprintable() else repr(key)
        raise UserError(f"argument {shown}: no value; null unsets a setting, '' is an empty text")
    value = _override_value(key, text)
    if key == "objective" and isinstance(value, str | list):
        key = "objective.terms"
    *sections, leaf = key.split(".")
    for section in sections:
        inner = values.setdefault(section, {})
        if not isinstance(inner, dict):
            raise UserError(f"argument {key}: {section} is a value, not a section")
        values = inner
    values[leaf] = value


def _override_value(key: str, text: str) -> object:
    """Numbers, true, false, null, quoted text, [lists] and {mappings} as in YAML; other text as is.

    So ``*.txt``, ``a: b`` and ``x #1`` keep the meaning they have as names of files.
    """
    try:
        value = parse_yaml(text)
    except yaml.YAMLError as error:
        if text.lstrip().startswith(("[", "{", "'", '"')):
            problem = _yaml_problem(error)
            raise UserError(f"argument {key}: not valid YAML: {problem}") from error
        return text
    marked = text.lstrip().startswith(("[", "'", '"')) or (isinstance(value, dict) and "{" in text)
    return value if marked or value is None or isinstance(value, bool | int | float) else text


def _problems(error: ValidationError) -> Iterator[str]:
    for item in error.errors():
        place = ".".join(str(part) for part in item["loc"] if part != "[key]")
        place = place if place.isprintable() else repr(place)
        if item["type"] == "extra_forbidden":
            yield f"{place}: unknown key{_nearest(item['loc'])}"
        elif item["type"] == "value_error":
            message = str(item["ctx"]["error"])
            yield f"{place}: {message}" if place else message
        else:
            yield f"{place}: {_rule(item['msg'])}, got {reprlib.repr(item['input'])}"


def _rule(message: str) -> str:
    message = re.sub(r" or instance of \w+$", "", message.replace("Input should", "should"))
    return message[0].lower() + message[1:]


def _nearest(location: tuple[int | str, ...]) -> str:
    section: type[BaseModel] = Config
    for part in location[:-1]:
        annotation = section.model_fields[str(part)].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return ""
        section = annotation
    names = list(section.model_fields)
    near = difflib.get_close_matches(str(location[-1]), names, n=2, cutoff=0.6)
    if near:
        return f" (did you mean {' or '.join(near)}?)"
    everywhere = list(Config().settings())
    elsewhere = [key for key in everywhere if key.rpartition(".")[2] == location[-1]]
    return f" (did you mean {elsewhere[0]}?)" if elsewhere else f" (allowed: {', '.join(names)})"


def _yaml_place(path: Path, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    return f"{path}:{mark.line + 1}" if mark else str(path)


def _yaml_problem(error: yaml.YAMLError) -> str:
    return getattr(error, "problem", None) or first_line(error)
