"""Files that are documents as they stand: plain text and Markdown."""

from __future__ import annotations

import re
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

from simcse.errors import UserError

DOCUMENT_SUFFIXES = (".txt", ".md", ".markdown")
MOST_CHARACTERS = 50_000_000
_FRONT_MATTER = re.compile(r"\A---\n(.*?\n)---\n", re.DOTALL)
_TITLE = re.compile(r"^title:[ \t]*(.*\S)[ \t]*$", re.MULTILINE)


def document_files(folder: Path) -> list[Path]:
    """Files of a folder and the folders in it, in order; hidden ones are left out."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in DOCUMENT_SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )


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

    The title is that of the front matter, or the first heading.
    """
    title = ""
    if front := _FRONT_MATTER.match(markdown):
        markdown = markdown[front.end() :]
        if found := _TITLE.search(front[1]):
            title = found[1].strip("\"'")
    paragraphs = []
    is_heading = False
    for token in MarkdownIt("commonmark").enable("table").parse(markdown):
        if token.type in ("heading_open", "heading_close"):
            is_heading = token.type == "heading_open"
        elif token.type == "inline":
            text = _words(token)
            if is_heading and not title:
                title = text
            else:
                paragraphs.append(text)
    return title, "\n\n".join(paragraphs)


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
