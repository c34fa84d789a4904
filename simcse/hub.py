"""How the Hugging Face Hub fails: what can be tried again, and what went wrong in one line."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import httpx2
from huggingface_hub import get_session, get_token, try_to_load_from_cache
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from simcse.errors import HubUnreachableError, UserError, first_line

TIMEOUT = httpx2.Timeout(120.0, connect=15.0)
"""Of each read, write and connection; the client alone would wait for ever."""
LONGEST_WAIT = 60.0
"""Seconds between two attempts, at most."""
_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN to a token that may write"
_PASSING_STATUS = frozenset({408, 409, 412, 423, 425, 429, 500, 502, 503, 504})

Result = TypeVar("Result")


def check_name(name: str) -> None:
    """A repository is ``user/name``.

    Raises:
        UserError: It is not.
    """
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(
            f"{name!r}: expected the name of a repository: {first_line(error)}"
        ) from error
    if "/" not in name:
        raise UserError(f"{name!r}: expected the name of a repository, such as me/{name}")


def failure(message: str, error: BaseException) -> UserError:
    """The error to raise where something from the Hub could not be had.

    Args:
        message: What is missing.
        error: What a library raised; its causes tell a Hub that does not answer from one that
            answers no.
    """
    unreachable = (httpx2.TransportError, OfflineModeIsEnabled, LocalEntryNotFoundError)
    found = any(isinstance(cause, (*unreachable, ConnectionError)) for cause in _causes(error))
    status = _status(error)
    return (HubUnreachableError if found or (status or 0) >= 500 else UserError)(message)


def cached_commit(name: str, revision: str | None = None) -> str | None:
    """Commit of a model as it is in the client's cache; ``None`` where it is not there."""
    file = try_to_load_from_cache(name, "config.json", revision=revision)
    # The client keeps files as …/snapshots/<commit>/config.json.
    return Path(file).parent.name if isinstance(file, str) else None


def with_retries(call: Callable[[], Result], what: str, attempts: int) -> Result:
    """Call, and call again while the Hub fails in a way that passes; waits 1, 2, 4 … seconds.

    Args:
        call: One step that can be repeated.
        what: It in words, for the messages.
        attempts: How often at most, at least 1.

    Raises:
        UserError: The Hub refuses, or did not answer in the last attempt either.
    """
    for attempt in range(1, attempts + 1):
        get_session().timeout = TIMEOUT  # anew: the client drops its session after some errors
        try:
            return call()
        except Exception as error:  # the client wraps errors of connections in several ways
            reason = _reason(error)
            if reason is None:
                raise
            if not _passes(error):
                raise UserError(f"{what}: {reason}") from error
            if attempt == attempts:
                raise HubUnreachableError(
                    f"{what}: {reason} ({attempts} attempts); nothing here was changed"
                ) from error
            wait = min(_asked_to_wait(error) or 2.0 ** (attempt - 1), LONGEST_WAIT)
            print(
                f"{what}: {reason}; trying again in {wait:.0f} s ({attempt + 1} of {attempts})",
                file=sys.stderr,
                flush=True,
            )
            time.sleep(wait)
    raise ValueError(f"attempts: expected 1 or more, got {attempts}")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _status(error: BaseException) -> int | None:
    for cause in _causes(error):
        if isinstance(cause, HfHubHTTPError | httpx2.HTTPStatusError):
            return int(cause.response.status_code)
    return None


def _passes(error: BaseException) -> bool:
    if (status := _status(error)) is not None:
        return status in _PASSING_STATUS
    return not any(
        isinstance(cause, OfflineModeIsEnabled | LocalTokenNotFoundError)
        for cause in _causes(error)
    )


def _reason(error: BaseException) -> str | None:
    """In one line; ``None`` for what is not the Hub's or the network's doing."""
    status = _status(error)
    if status in (401, 403):
        if status == 401 and get_token() is None:
            return f"no token; {_LOG_IN}"
        meaning = "the token is not valid" if status == 401 else "the token may not do this"
        return f"the Hub refused ({status}): {meaning}; {_LOG_IN}"
    if status is not None:
        # What the Hub finds wrong with a card is in the client's own words, over several lines.
        said = error if type(error) is ValueError else _http_error(error)
        return f"the Hub answered {status}: {' '.join(str(said).split())[:500]}"
    for cause in _causes(error):
        if isinstance(cause, OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE is set; unset it to reach the Hub"
        if isinstance(
            cause, json.JSONDecodeError
        ):  # an HTML page, of a proxy or a Hub that is down
            return "the Hub's answer is not JSON"
        if isinstance(cause, LocalTokenNotFoundError):
            return f"no token; {_LOG_IN}"
        if isinstance(cause, httpx2.TransportError | ConnectionError | TimeoutError):
            return f"the Hub cannot be reached ({type(cause).__name__}: {first_line(cause)})"
    # What the client finds wrong with a transfer is an OSError without number (the system's have
    # one), and hf_xet, which carries large files, has no error of its own for connections.
    own = type(error).__module__.partition(".")[0] in ("hf_xet", "huggingface_hub")
    transfer = isinstance(error, OSError) and error.errno is None
    return first_line(error) if own or transfer else None


def _http_error(error: BaseException) -> BaseException:
    return next(cause for cause in _causes(error) if isinstance(cause, HfHubHTTPError))


def _asked_to_wait(error: BaseException) -> float | None:
    for cause in _causes(error):
        if isinstance(cause, HfHubHTTPError):
            value = cause.response.headers.get("Retry-After", "")
            return float(value) if value.isdecimal() else None
    return None
