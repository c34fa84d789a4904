"""Sentences as users give them: one, several in whatever holds them in order, or a file's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from numbers import Integral
from pathlib import Path

from simcse.config.settings import Encoding
from simcse.data.readers import has_data_suffix, read_sentences, sound_text
from simcse.errors import UserError
from simcse.inference.index import Id


def ids_of(ids: Iterable[Id], count: int) -> list[Id]:
    """Ids of sentences, checked.

    Raises:
        UserError: They are not as many, or not numbers or texts.
    """
    if not isinstance(ids, Iterable):
        raise UserError(f"ids: expected several, got {type(ids).__name__}")
    listed = [int(one) if isinstance(one, Integral) else one for one in ids]
    if wrong := [one for one in listed if not isinstance(one, int | str)]:
        raise UserError(f"ids: expected whole numbers or texts, got {type(wrong[0]).__name__}")
    if len(listed) != count:
        raise UserError(f"ids: {len(listed):,} for {count:,} sentences")
    return listed


def sentences_of(
    source: str | Path | Iterable[str],
    column: str | None = None,
    separator: str | None = None,
    encoding: Encoding = "utf-8",
) -> tuple[list[str], list[int]]:
    """Sentences as they are given, or those of a file, and their rows from 0 on.

    Raises:
        UserError: Something else than text, or a file that is missing, malformed or empty.
    """
    if not isinstance(source, str | Path):
        texts = texts_of(source)
        return texts, list(range(len(texts)))
    path = Path(source)
    suffix = None if has_data_suffix(path) else ".txt"
    lines = read_sentences(path, column, suffix, separator=separator, encoding=encoding)
    kept = [(s, row) for row, line in enumerate(lines) if (s := line.rstrip())]
    if not kept:
        raise UserError(f"{path}: no text in it")
    return [sentence for sentence, _ in kept], [row for _, row in kept]


def texts_of(texts: str | Iterable[str]) -> list[str]:
    """The texts as a list.

    Raises:
        UserError: Something else was given, such as a table, which would give its columns' names.
    """
    if isinstance(texts, str):
        texts = [texts]
    table = isinstance(texts, Mapping) or any(
        hasattr(texts, n) for n in ("columns", "column_names")
    )
    if table or isinstance(texts, bytes) or not isinstance(texts, Iterable):
        hint = "; pass one column, such as df['text']" if table else ""
        raise UserError(f"expected a str or several, got {type(texts).__name__}{hint}")
    listed = list(texts)
    for position, text in enumerate(listed):
        if not isinstance(text, str):
            missing = type(text).__name__ in ("NoneType", "float", "NAType")  # as pandas has it
            hint = "; leave out what is missing, such as df['text'].dropna()" if missing else ""
            raise UserError(f"sentence {position}: expected str, got {type(text).__name__}{hint}")
        sound_text(f"sentence {position}", text)
    return listed
