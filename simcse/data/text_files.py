"""Files that are documents as they stand: plain text and Markdown."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NoReturn

from markdown_it import MarkdownIt
from markdown_it.rules_core import StateCore
from markdown_it.token import Token

from simcse.errors import UserError

DOCUMENT_SUFFIXES = (".txt", ".md", ".markdown")
MOST_CHARACTERS = 50_000_000
_FRONT_MATTER = re.compile(r"\A---\n(.*?\n)---\n", re.DOTALL)
_TITLE = re.compile(r"^title:(.*)$", re.MULTILINE)
# Markdown without a blank line for this many characters is none; brackets alone take 15 s a MB.
_LONGEST_PARAGRAPH = 100_000


def document_files(folder: Path) -> tuple[list[Path], int]:
    """Files of a folder and the folders in it, in order, and how many linked folders it has.

    Links to folders are not followed, since they may lead back; what is hidden is left out.

    Raises:
        OSError: A folder cannot be read.
        UserError: A file is a link to nothing.
    """

    def stop(error: OSError) -> NoReturn:
        raise error

    found: list[Path] = []
    links = 0
    for root, folders, names in os.walk(folder, onerror=stop):
        folders[:] = [name for name in folders if not name.startswith(".")]
        links += sum(Path(root, name).is_symlink() for name in folders)
        found += [Path(root, name) for name in names if not name.startswith(".")]
    documents = [path for path in found if path.suffix.lower() in DOCUMENT_SUFFIXES]
    if broken := [path for path in documents if not path.exists()]:
        raise UserError(f"{broken[0]}: a link to nothing")
    return sorted(path for path in documents if path.is_file()), links


def read_document(path: Path, encoding: str) -> str:
    """All of a file.

    Raises:
        UserError: Not text in this encoding, or too much of it.
    """
    if path.stat().st_size > 4 * MOST_CHARACTERS:
        raise UserError(f"{path}: more than {4 * MOST_CHARACTERS:,} bytes in one document")
    try:
        return path.read_text(encoding="utf-8-sig" if encoding == "utf-8" else encoding)
    except UnicodeDecodeError as error:
        shown = "UTF-8" if encoding == "utf-8" else encoding
        raise UserError(
            f"{path}: not {shown} text (byte {error.start}); set data.encoding"
        ) from error


def plain_text(markdown: str) -> tuple[str, str]:
    """Title and text of Markdown, without code blocks, HTML, and marks.

    The title is that of the front matter, or the first heading. Paragraphs beyond all bounds are
    taken as they stand.
    """
    title = ""
    if front := _FRONT_MATTER.match(markdown):
        markdown = markdown[front.end() :]
        if found := _TITLE.search(front[1]):
            title = found[1].strip().strip("\"'")
    paragraphs = []
    is_heading = False
    parser = MarkdownIt("commonmark").enable("table")
    parser.core.ruler.at("inline", _read_marks)
    for token in parser.parse(markdown):
        if token.type in ("heading_open", "heading_close"):
            is_heading = token.type == "heading_open"
        elif token.type == "inline":
            text = _words(token)
            if is_heading and not title:
                title = text
            else:
                paragraphs.append(text)
    return title, "\n\n".join(paragraphs)


def _read_marks(state: StateCore) -> None:
    """As the library does, but in the longest paragraphs."""
    for token in state.tokens:
        if token.type == "inline" and len(token.content) > _LONGEST_PARAGRAPH:
            token.children = [Token("text", "", 0, content=token.content)]
        elif token.type == "inline":
            token.children = []
            state.md.inline.parse(token.content, state.md, state.env, token.children)


def _words(token: Token) -> str:
    parts = []
    for child in token.children or ():
        if child.type in ("softbreak", "hardbreak"):
            parts.append(" ")
        elif child.type == "image":
            parts.append(_words(child))
        elif child.type in ("text", "code_inline"):
            parts.append(child.content)
    return "".join(parts)
