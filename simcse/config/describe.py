"""Every setting in words: its type, default and meaning, as ``simcse settings`` prints them."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from simcse.config.reading import json_schema, nearest_settings
from simcse.errors import UserError

_MOST = 2**31 - 1  # a bound of the libraries, of which nobody has to be told
_BOUNDS = {
    "exclusiveMinimum": "above",
    "minimum": "at least",
    "maximum": "at most",
    "exclusiveMaximum": "below",
}
_TYPES = {
    "integer": "integer",
    "number": "number",
    "boolean": "true or false",
    "string": "text",
    "null": "null",
}


@dataclass(frozen=True)
class Setting:
    """One setting, by its dotted key."""

    key: str
    kind: str
    default: str
    """Such as ``default 0.05``, or ``required``."""
    meaning: str


def settings_text(word: str | None = None, others: Callable[[], Iterable[Setting]] = tuple) -> str:
    """The settings that have a word in their key or meaning; all of them without one.

    Args:
        word: In any case.
        others: Settings that a config's schema does not hold, which take time to find: those of
            the objective's terms. Looked at where no key of a config's has the word.

    Raises:
        UserError: No setting has it.
    """
    wanted = (word or "").lower()
    found = [] if word is None else _named(wanted, settings_of(json_schema()))
    if not found:
        settings = [*settings_of(json_schema()), *others()]
        found = _named(wanted, settings) or [s for s in settings if wanted in s.meaning.lower()]
    if not found:
        near = nearest_settings(wanted)
        hint = f"did you mean {' or '.join(near)}?" if near else "without a word all are shown"
        raise UserError(f"settings {word}: no setting has this in its name or meaning ({hint})")
    return "\n".join(
        f"{s.key}  ({s.kind}; {s.default})\n{textwrap.indent(s.meaning, '    ')}" for s in found
    )


def _named(word: str, settings: Iterable[Setting]) -> list[Setting]:
    return [setting for setting in settings if word in setting.key.lower()]


def settings_of(schema: dict[str, Any], prefix: str = "") -> Iterator[Setting]:
    """The settings of a JSON schema, with a prefix before their keys."""
    sections = schema.get("$defs", {})

    def walk(properties: dict[str, Any], prefix: str) -> Iterator[Setting]:
        for name, field in properties.items():
            key = prefix + name
            if "$ref" not in field:
                meaning = " ".join(str(field["description"]).replace("``", "").split())
                meaning = textwrap.fill(meaning, 92, break_on_hyphens=False)
                yield Setting(key, _kind(field), _default(field), meaning)
            of_each = "[]" if field.get("type") == "array" else ""
            for section in _sections_in(field.get("items", field), sections):
                yield from walk(section["properties"], f"{key}{of_each}.")

    yield from walk(schema["properties"], prefix)


def _sections_in(field: dict[str, Any], sections: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The sections that a field may hold, maybe beside short forms of them."""
    for option in (field, *field.get("anyOf", ()), *field.get("oneOf", ())):
        if "$ref" in option:
            yield sections[option["$ref"].removeprefix("#/$defs/")]


def _default(field: dict[str, Any]) -> str:
    if "default" not in field:
        return "required"
    value = field["default"]
    if isinstance(value, list):  # sections have theirs below
        value = [{} if isinstance(item, dict) else item for item in value]
    if isinstance(value, dict) and "oneOf" in field:
        value = {}
    return f"default {json.dumps(value, ensure_ascii=False)}"


def _kind(field: dict[str, Any]) -> str:
    """A field's type and bounds, such as ``number above 0``."""
    for union in ("anyOf", "oneOf"):
        if union in field:
            return " or ".join(_kind(option) for option in field[union])
    if "enum" in field:
        return ", ".join(map(str, field["enum"]))
    if "pattern" in field and "title" in field:
        return str(field["title"])
    if field.get("type") == "array":
        return f"list of {_kind(field['items'])}"
    if "propertyNames" in field:
        names, weight = _kind(field["propertyNames"]), _kind(field["additionalProperties"])
        return f"mapping of {names} to {weight}"
    bounds = {word: field[name] for name, word in _BOUNDS.items() if name in field}
    if "at least" in bounds:
        bounds.pop("above", None)
    in_words = [f"{word} {value:,}" for word, value in bounds.items() if value != _MOST]
    return " ".join([_TYPES.get(str(field.get("type")), "mapping"), " and ".join(in_words)]).strip()
