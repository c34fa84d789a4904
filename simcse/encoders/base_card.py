"""What an encoder's own card says of it: its licence, and what it was made from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from simcse.config.settings import HUB_LICENSE, HUB_MODEL
from simcse.config.yaml_values import parse_yaml

_LONGEST = 100_000  # characters that are looked at
_FRONT_MATTER = re.compile(r"---\r?\n(.*?)\r?\n---\r?\n", re.DOTALL)


def of_card(folder: Path) -> dict[str, str | None]:
    """``license`` and ``base_model`` by a model's README; ``None`` where it does not say.

    The file may be anybody's: only what could be a licence's id and a model's name is taken.
    """
    values: Any = {}
    path = folder / "README.md"
    if path.is_file():
        with path.open(encoding="utf-8", errors="replace") as file:
            front = _FRONT_MATTER.match(file.read(_LONGEST))
        try:
            values = parse_yaml(front[1]) if front else {}
        except yaml.YAMLError:
            values = {}
    values = values if isinstance(values, dict) else {}
    found = {}
    for key, pattern in (("license", HUB_LICENSE), ("base_model", HUB_MODEL)):
        value = values.get(key)
        value = value[0] if isinstance(value, list) and len(value) == 1 else value
        found[key] = value if isinstance(value, str) and re.fullmatch(pattern, value) else None
    return found
