"""How the Hugging Face Hub fails: what can be retried, and what went wrong, in one line."""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar
from urllib.parse import urlsplit

import httpx2
from huggingface_hub import constants, get_session, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)
from huggingface_hub.utils import logging as client_logging
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from simcse.errors import HubUnreachableError, UserError, first_line

TIMEOUT = httpx2.Timeout(120.0, connect=15.0)
"""Of each read, write and connection that sends something; the client alone would wait for ever."""
QUESTION_TIMEOUT = httpx2.Timeout(10.0)
"""Of those that only ask, as the client has it for files."""
LONGEST_WAIT = 60.0
"""Seconds between two attempts, at most."""
_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN to a token that may write"
_PASSING_STATUS = frozenset({408, 409, 412, 423, 425, 429, 500, 502, 503, 504})
# What the client's own code raises where an answer is not of the form that it expects.
_NONSENSE = (LookupError, TypeError, AttributeError, ValueError, AssertionError, RuntimeError)

Result = TypeVar("Result")


def check_name(name: str, *, owner: bool = True) -> None:
    """A repository is ``user/name``; some old ones have no ``owner``.

    Raises:
        UserError: It is not.
    """
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(
            f"{name!r}: expected the name of a repository: {first_line(error)}"
        ) from error
    if owner and "/" not in name:
        raise UserError(f"{name!r}: expected the name of a repository, such as me/{name}")


def masked(text: str) -> str:
    """In one line, without the token and the password of ``HF_ENDPOINT``."""
    text = re.sub(r"//[^/\s@]+@", "//***@", " ".join(text.split()))
    for secret in (get_token(), urlsplit(constants.ENDPOINT).password):
        if secret:
            text = text.replace(secret, "***")
    return text


def failure(message: str, error: BaseException) -> UserError:
    """The error to raise when something could not be fetched from the Hub.

    Args:
        message: What is missing.
        error: What a library raised; its causes tell a Hub that does not answer from one that
            answers no.
    """
    unreachable = (
        httpx2.TransportError,
        OfflineModeIsEnabled,
        LocalEntryNotFoundError,
        HubUnreachableError,
        ConnectionError,
    )
    answer = _http_error(error)
    is_down = answer is not None and answer.response.status_code >= 500
    is_unreachable = any(isinstance(cause, unreachable) for cause in _causes(error))
    return (HubUnreachableError if is_down or is_unreachable else UserError)(masked(message))


def with_retries(call: Callable[[], Result], what: str, attempts: int) -> Result:
    """Call, and retry while the Hub fails temporarily; waits 1, 2, 4 … seconds.

    Args:
        call: A step that can be repeated.
        what: The step in words, for the messages.
        attempts: Most attempts, at least 1.

    Raises:
        UserError: The Hub refuses, or did not answer in the last attempt either.
    """
    for attempt in range(1, attempts + 1):
        hooks = get_session().event_hooks["request"]
        if _bound_time not in hooks:  # anew: the client drops its session after some errors
            hooks.append(_bound_time)
        try:
            with _quiet_client():
                return call()
        except Exception as error:  # the client wraps errors of connections in several ways
            if (words := _reason(error)) is None:
                raise
            reason = masked(words)[:500]
            if not _passes(error):
                raise failure(f"{what}: {reason}", error) from error
            if attempt == attempts:
                tried = f" ({attempts} attempts)" if attempts > 1 else ""
                raise HubUnreachableError(f"{what}: {reason}{tried}") from error
            answer = _http_error(error)
            asked = answer.response.headers.get("Retry-After", "") if answer else ""
            wait = float(asked if asked.isdecimal() else 0) or 2.0 ** (attempt - 1)
            wait = min(wait, LONGEST_WAIT)
            print(
                f"{what}: {reason}; trying again in {wait:.0f} s ({attempt + 1} of {attempts})",
                file=sys.stderr,
                flush=True,
            )
            time.sleep(wait)
    raise ValueError(f"attempts: expected 1 or more, got {attempts}")


def _bound_time(request: httpx2.Request) -> None:
    """Set time limits where the client has none; it ignores those of its session."""
    limits = TIMEOUT if request.method in ("POST", "PUT") else QUESTION_TIMEOUT
    given = request.extensions.get("timeout", {})
    request.extensions["timeout"] = {
        part: given.get(part) or seconds for part, seconds in limits.as_dict().items()
    }


@contextmanager
def _quiet_client() -> Iterator[None]:
    """Without the client's own messages, which are long and show URLs with passwords."""
    before = client_logging.get_verbosity()
    client_logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        client_logging.set_verbosity(before)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _http_error(error: BaseException) -> HfHubHTTPError | httpx2.HTTPStatusError | None:
    """The answer of the Hub that an error is about, if it answered."""
    kinds = HfHubHTTPError | httpx2.HTTPStatusError
    return next((cause for cause in _causes(error) if isinstance(cause, kinds)), None)


def _passes(error: BaseException) -> bool:
    if answer := _http_error(error):
        return answer.response.status_code in _PASSING_STATUS
    refusals = (OfflineModeIsEnabled, LocalTokenNotFoundError, httpx2.TooManyRedirects)
    if any(isinstance(cause, refusals) for cause in _causes(error)):
        return False
    return isinstance(error, json.JSONDecodeError) or not isinstance(error, _NONSENSE)


def _reason(error: BaseException) -> str | None:
    """In words; ``None`` for what is not the Hub's or the network's doing."""
    if isinstance(error, UserError):
        return None
    if answer := _http_error(error):
        return _answer(answer, error)
    for cause in _causes(error):
        if isinstance(cause, OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE is set; unset it to reach the Hub"
        if isinstance(cause, json.JSONDecodeError):  # HTML, of a proxy or a Hub that is down
            return "the Hub's answer is not JSON"
        if isinstance(cause, LocalTokenNotFoundError):
            return f"no token; {_LOG_IN}"
        if isinstance(cause, UnicodeEncodeError):  # of a header
            return f"the token is not ASCII; {_LOG_IN}"
        if isinstance(cause, httpx2.RequestError | ConnectionError | TimeoutError):
            return f"the Hub cannot be reached ({type(cause).__name__}: {first_line(cause)})"
    # What the client finds wrong with a transfer is an OSError without number (the system's have
    # one), and hf_xet, which carries large files, has no error of its own for connections.
    own = type(error).__module__.partition(".")[0] in ("hf_xet", "huggingface_hub")
    transfer = isinstance(error, OSError) and error.errno is None
    if own or transfer:
        return first_line(error)
    if isinstance(error, _NONSENSE):
        return f"the Hub's answer makes no sense ({type(error).__name__}: {error})"
    return None


def _answer(answer: HfHubHTTPError | httpx2.HTTPStatusError, error: BaseException) -> str:
    status = answer.response.status_code
    if status == 401 and get_token() is None:
        return f"no token; {_LOG_IN}"
    if status in (401, 403):
        meaning = "the token is not valid" if status == 401 else "the token may not do this"
        return f"the Hub refused ({status}): {meaning}; {_LOG_IN}"
    # What the Hub finds wrong with a card is in the client's own words, over several lines.
    said = str(error) if type(error) is ValueError else getattr(answer, "server_message", None)
    return f"the Hub answered {status}{f': {said}' if said else ''}"
