"""Lines of the evaluation files, with file and line number in every complaint."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from simcse.errors import UserError

Row = TypeVar("Row")


def read_lines(path: Path, encoding: str = "utf-8-sig") -> list[str]:
    r"""All lines, without their ends.

    Split on ``\n`` alone: ``str.splitlines`` would also break at rarer separators in a sentence.

    Raises:
        UserError: The file is missing or a pipe or device, or is not text in this encoding, or has
            NUL characters.
    """
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: a folder, pipe or device; expected a file")
    try:
        text = path.read_bytes().decode(encoding)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror} (SentEval's layout is expected)") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start})") from error
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise UserError(f"{path}:{line}: NUL character; is this a text file?")
    return text.removesuffix("\n").replace("\r\n", "\n").split("\n")


def spaced(text: str) -> str:
    """A sentence as SentEval gives it to a model: its words with one space between.

    WordPiece tokenizers see no difference; byte-level BPE has tokens for runs of spaces.
    """
    return " ".join(text.split())


def parse_lines(
    path: Path,
    parse: Callable[[str], Row],
    expected: str,
    *,
    header: bool = False,
    encoding: str = "utf-8-sig",
) -> Iterator[Row]:
    """Parse every line.

    Args:
        path: The file.
        parse: From a line to a row; a ``ValueError``, ``KeyError`` or ``IndexError`` of it means
            that the line is malformed.
        expected: What a line should be, for the error.
        header: Skip the first line.
        encoding: Of the file.

    Raises:
        UserError: As :func:`read_lines`, or a line is malformed.
    """
    for number, line in enumerate(read_lines(path, encoding), 1):
        if header and number == 1:
            continue
        try:
            yield parse(line)
        except (ValueError, KeyError, IndexError) as error:
            reason = f" ({error})" if str(error).startswith("a grade") else ""
            raise UserError(f"{path}:{number}: not {expected}{reason}: {line[:60]!r}") from error
