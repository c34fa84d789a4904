"""YAML as plain values: no aliases, no repeated keys, every mistake with its line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from simcse.errors import UserError, first_line

_LARGEST = 1_000_000  # of a config; PyYAML takes minutes for more


def read_values(path: Path) -> Any:
    """Plain values of a YAML file.

    Raises:
        UserError: It is not UTF-8 text or not YAML; with the line.
    """
    try:
        if path.stat().st_size > _LARGEST:
            raise UserError(f"{path}: more than {_LARGEST:,} bytes; is this a config?")
        return parse_yaml(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start})") from error
    except yaml.YAMLError as error:
        raise UserError(
            f"{_yaml_place(path, error)}: not valid YAML: {yaml_problem(error)}"
        ) from error


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
    if re.fullmatch(r"[-+]?0[0-9_]+|.*:.*", str(node.value)):  # octal and base 60 of YAML 1.1
        raise ValueError(f"{node.value} would be another number in YAML; write it without 0 or :")
    value = loader.construct_yaml_int(node)
    str(value)  # raises where it is too long to be shown in a message
    return value


def _as_written(loader: _Loader, node: yaml.ScalarNode) -> str:
    return str(loader.construct_scalar(node))


_Loader.add_constructor("tag:yaml.org,2002:int", _printable_int)
# A date is no value of any setting, but may be the name of a file or folder.
_Loader.add_constructor("tag:yaml.org,2002:timestamp", _as_written)


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


def _yaml_place(path: Path, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    return f"{path}:{mark.line + 1}" if mark else str(path)


def yaml_problem(error: yaml.YAMLError) -> str:
    """What is wrong with a YAML text, in one line."""
    return getattr(error, "problem", None) or first_line(error)
