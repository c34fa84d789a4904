"""Makes the documents that the quickstart trains on: the library reference of Python 3.11.

    apt-get download python3.11-doc && dpkg-deb -x python3.11-doc_*.deb doc
    python scripts/make_python_docs.py doc/usr/share/doc/python3.11/html

Made once, with Debian's package 3.11.2-6 and beautifulsoup4, and shipped as
``simcse/assets/python-docs.jsonl.gz``: everybody trains on the same text. A document is a function,
class, method or section with its own paragraphs, without those of what is described inside it;
examples and tables are left out. The text is the Python Software Foundation's, under its licence,
which lies beside it.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Iterator
from pathlib import Path

from bs4 import BeautifulSoup, Tag

ASSETS = Path(__file__).parent.parent / "simcse" / "assets"
LEAST_CHARACTERS = 80
_OWN_DOCUMENT = ("section", "dl")
_LEFT_OUT = ("pre", "table", "script", "style")


def documents(page: Path) -> Iterator[tuple[str, str]]:
    """Title and text of everything that a page describes."""
    body = BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser").find(class_="body")
    if not isinstance(body, Tag):
        return
    for link in body.find_all(class_="headerlink"):
        link.decompose()
    for section in body.find_all("section"):
        heading = section.find(["h1", "h2", "h3", "h4"], recursive=False)
        if heading is not None:
            module = "" if heading.name == "h1" else f"{page.stem}: "
            yield f"{module}{_line(heading)}", _text(section)
    for entry in body.select("dl.py > dt.sig"):
        description = entry.find_next_sibling("dd")
        if description is not None:
            yield _line(entry), _text(description)


def _text(tag: Tag) -> str:
    """Paragraphs of a tag, but for those of documents inside it."""
    found = []
    for child in tag.children:
        if not isinstance(child, Tag) or child.name in _LEFT_OUT:
            continue
        if child.name == "p":
            found.append(_line(child))
        elif child.name not in _OWN_DOCUMENT or "simple" in child.get("class", []):
            found.append(_text(child))
    return "\n".join(filter(None, found))


def _line(tag: Tag) -> str:
    return " ".join(tag.get_text().split())


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("html", type=Path)
    pages = sorted((parser.parse_args().html / "library").glob("*.html"))
    rows: dict[str, str] = {}
    for page in pages:
        for title, text in documents(page):
            if len(text) >= LEAST_CHARACTERS:
                rows.setdefault(text, title)
    with (
        (ASSETS / "python-docs.jsonl.gz").open("wb") as raw,
        gzip.GzipFile("", "wb", 9, raw, mtime=0) as file,
    ):
        for text, title in rows.items():
            line = json.dumps({"title": title, "text": text}, ensure_ascii=False)
            file.write(f"{line}\n".encode())
    print(f"{len(rows):,} documents from {len(pages)} pages")


if __name__ == "__main__":
    main()
