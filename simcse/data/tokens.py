"""Text in chunks that fit in memory, and the first token ids of texts of any length."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from transformers import PreTrainedTokenizerBase

MANY_UNKNOWN = 0.05
"""Share of unknown tokens above which it is said."""
_SAMPLE = 1000  # texts that tell the share
_AFTER_PROMPT = ("river", "A Yes.", "3 of 7")  # beginnings of texts

Item = TypeVar("Item")
Ids = list[int]

CHARACTERS = 2_000_000
"""Of a chunk. Tokenising all of them takes up to 350 bytes of memory a character."""
# Beginning of a long text, in characters: English has five a token.
_LEAST, _PER_TOKEN = 1000, 32


def in_chunks(
    items: Iterable[Item], most: int, characters: Callable[[Item], int]
) -> Iterator[list[Item]]:
    """Lists of ``most`` items, or of fewer where they reach :data:`CHARACTERS`."""
    chunk: list[Item] = []
    size = 0
    for item in items:
        chunk.append(item)
        size += characters(item)
        if len(chunk) == most or size >= CHARACTERS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def first_ids(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int | None
) -> tuple[list[list[int]], int]:
    """Token ids of each text, cut at ``max_length``, and how many texts were cut.

    A tokenizer that splits a text at spaces gives the same first tokens for its beginning as for
    all of it. So only the beginning of a long text is tokenised, up to a space, and used if as many
    tokens again lie between the kept ones and the cut; else, and by other tokenizers, all of it.

    Args:
        texts: Of any length.
        tokenizer: A fast one.
        max_length: In tokens, special tokens included; ``None`` is the tokenizer's own limit.
    """
    beginnings = list(texts)
    if max_length and tokenizer.truncation_side == "right" and _splits_at_spaces(tokenizer):
        window = max(_LEAST, _PER_TOKEN * max_length)
        beginnings = [_beginning(text, window) for text in texts]
    found = _tokenize(beginnings, tokenizer, max_length)
    unsure = [
        index
        for index, (text, beginning, (_, parts)) in enumerate(
            zip(texts, beginnings, found, strict=True)
        )
        if len(beginning) < len(text) and parts < 3
    ]
    whole = _tokenize([texts[index] for index in unsure], tokenizer, max_length)
    for index, result in zip(unsure, whole, strict=True):
        found[index] = result
    return [ids for ids, _ in found], sum(parts > 1 for _, parts in found)


def _splits_at_spaces(tokenizer: PreTrainedTokenizerBase) -> bool:
    splitter = tokenizer.backend_tokenizer.pre_tokenizer
    return splitter is not None and len(splitter.pre_tokenize_str("a b a b")) > 1


def _beginning(text: str, window: int) -> str:
    space = text.rfind(" ", 0, window) if len(text) > window else -1
    return text if space < 0 else text[:space]


def _tokenize(
    texts: list[str], tokenizer: PreTrainedTokenizerBase, max_length: int | None
) -> list[tuple[list[int], int]]:
    """Of each text the first ``max_length`` ids, and how many parts of that length it fills."""
    if not texts:
        return []
    encoded = tokenizer(
        texts,
        truncation=True,
        max_length=max_length,
        return_overflowing_tokens=True,
        return_attention_mask=False,
        return_token_type_ids=False,
    )
    origin = encoded["overflow_to_sample_mapping"]
    parts = Counter(origin)
    first: dict[int, list[int]] = {}
    for text, ids in zip(origin, encoded["input_ids"], strict=True):
        first.setdefault(text, ids)  # a text's beginning comes before its other parts
    return [(first[text], parts[text]) for text in range(len(texts))]


def unknown_in(texts: Sequence[str], tokenizer: object) -> tuple[int, int]:
    """How many tokens of some of the texts the tokenizer does not know, and how many there are."""
    if not isinstance(tokenizer, PreTrainedTokenizerBase) or tokenizer.unk_token_id is None:
        return 0, 0
    some = texts[:: max(1, len(texts) // _SAMPLE)]
    ids, _ = first_ids([text for text in some if text.strip()], tokenizer, None)
    return count_unknown(ids, tokenizer)


def count_unknown(
    ids: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase
) -> tuple[int, int]:
    """Unknown tokens and all tokens, without the special ones around a text."""
    ends = sum(special_ends(tokenizer))
    return (
        sum(one.count(tokenizer.unk_token_id) for one in ids),
        sum(max(0, len(one) - ends) for one in ids),
    )


def unknown_warning(unknown: int, tokens: int, source: str) -> str | None:
    """What it means that many tokens are unknown; ``None`` where few are."""
    if unknown <= MANY_UNKNOWN * tokens:
        return None
    return (
        f"warning: {unknown / tokens:.0%} of the tokens in {source} are unknown to this encoder, "
        "which cannot tell them apart: texts in this script look alike to it; choose an encoder "
        "made for the language, such as a multilingual one"
    )


def special_ends(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """How many special tokens an input has at its start and its end."""
    marks = tokenizer("a", return_special_tokens_mask=True)["special_tokens_mask"]
    start = marks.index(0)
    return start, marks[::-1].index(0)


def prompt_ids(prompt: str, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], bool]:
    """Token ids to put before those of any text, and whether that gives those of both together.

    Most tokenizers split at spaces and keep none at the end of the prompt. A tokenizer that takes
    the space to the word after it, as byte-level ones do, splits the first word in another way.
    """

    def ids(text: str) -> list[int]:
        found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return found

    for candidate in (prompt, prompt.rstrip()):
        before = ids(candidate)
        if all(ids(prompt + text) == before + ids(text) for text in _AFTER_PROMPT):
            return before, True
    return ids(prompt), False
