"""Config files: found by name or path, with the values that they inherit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from simcse.config.overrides import with_overrides
from simcse.config.yaml_values import read_values
from simcse.errors import UserError

# The clone keeps the configs beside the package, a wheel carries them inside it.
_PACKAGE = Path(__file__).parent.parent
CONFIG_FOLDERS = (_PACKAGE / "configs", _PACKAGE.parent / "configs")
_OF_TEXT = {".txt", ".csv", ".tsv", ".jsonl", ".parquet", ".md"}

BASE = {
    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}, {"type": "null"}],
    "default": None,
    "description": "Only in a file: configs that this one changes, by name or path (from its own "
    "folder); of several each changes those before it. ``output`` is not inherited.",
}
"""JSON schema of the key ``base``, which no resolved config has."""


def config_names() -> list[str]:
    """Names of the configs that come with the project, such as ``quickstart``."""
    return sorted({path.stem for folder in CONFIG_FOLDERS for path in folder.glob("*.yaml")})


def find_config(name_or_path: str) -> Path:
    """Find a config by path, or by the bare name of one that comes with the project.

    Raises:
        UserError: There is no such file; the message lists the names that exist.
    """
    path = Path(name_or_path)
    is_text = bool(set(path.suffixes) & _OF_TEXT)
    if path.is_file() and not is_text:
        return path
    # `configs/quickstart.yaml` works from an installed wheel too, where no such folder exists.
    shipped_form = path.parent in (Path(), Path("configs"))
    for folder in CONFIG_FOLDERS if shipped_form else ():
        if (shipped := folder / f"{path.name.removesuffix('.yaml')}.yaml").is_file():
            return shipped
    if is_text or path.is_dir():
        are_documents = path.is_dir() or path.suffix == ".md"
        tests = "" if are_documents else " evaluation.dev=pairs evaluation.tasks=pairs"
        raise UserError(
            f"config {path}: a config is a .yaml file; to train on this text: "
            f"simcse train data.train={path}{tests}"
        )
    raise UserError(f"config {name_or_path}: no such file; shipped are {', '.join(config_names())}")


def values_with_bases(path: Path, heirs: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Plain values of a config file, over those of the configs that it names as ``base``.

    Args:
        path: The file.
        heirs: Files that inherit from it.

    Raises:
        UserError: A file is missing, unreadable, no mapping, or inherits from itself.
    """
    own = read_values(path)
    if own is None:
        own = {}
    if not isinstance(own, dict):
        raise UserError(f"{path}: expected a mapping of settings, found {type(own).__name__}")
    bases = own.pop("base", None) or []
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(name, str) for name in bases):
        raise UserError(f"{path}: base: expected a config's name or path, or several, got {bases}")
    values: dict[str, Any] = {}
    for name in bases:
        beside = path.parent / name
        base = beside if beside.is_file() else find_config(name)
        if base.resolve() in [heir.resolve() for heir in (*heirs, path)]:
            raise UserError(f"{path}: base: {name} would inherit from itself")
        values = _changed(values, values_with_bases(base, (*heirs, path)))
        values.pop("output", None)
    return _changed(values, own) if bases else own


def _changed(values: dict[str, Any], by: dict[str, Any]) -> dict[str, Any]:
    """Values of which some are replaced, setting by setting, as on the command line."""
    changed = with_overrides(values, ())
    for name, value in with_overrides(by, ()).items():
        old = changed.get(name)
        both = isinstance(old, dict) and isinstance(value, dict)
        changed[name] = old | value if both else value
    return changed
