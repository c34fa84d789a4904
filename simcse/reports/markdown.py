"""Markdown in which text from elsewhere stays plain text."""

from __future__ import annotations

import re

from markupsafe import Markup

from simcse.terminal import visible

# What makes emphasis, code, links, HTML, tables, headings, formulas and addresses. Lists and rules
# need the start of a line, where the card has words of its own.
_MEANING = re.compile(r"[\\`*_\[\]<>&|~$#@]|:(?=//)|(?<=www)\.")


class Markdown(Markup):
    """Our own Markdown; whatever ``format``, ``join`` and ``+`` insert is escaped.

    As markupsafe does for HTML. A line of text stays on one line.
    """

    @classmethod
    def escape(cls, value: object, /) -> Markdown:
        """The value as text that reads in Markdown as it stands."""
        if isinstance(value, Markup):
            return cls(value)
        return cls(_MEANING.sub(r"\\\g<0>", visible(value)))


def fenced(text: str, language: str) -> Markdown:
    """A block of code; its fence is longer than any run of backticks inside."""
    longest = max((len(row) for row in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    lines = "\n".join(visible(line) for line in text.rstrip("\n").split("\n"))
    return Markdown(f"{fence}{language}\n{lines}\n{fence}")
