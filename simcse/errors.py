"""The one exception for mistakes a user can mend, and the short form of others' exceptions."""


class UserError(ValueError):
    """A mistake in a config, a file or an argument.

    The message is one line: what is wrong, where (file:line or config key), what is allowed.
    The command line prints it without a traceback and exits with status 2; from Python it is an
    ordinary ``ValueError``.
    """


class HubUnreachableError(UserError):
    """Not on this machine, and the Hub does not answer or may not be asked (``HF_HUB_OFFLINE``).

    The command line adds the command that fetches it.
    """


def first_line(error: BaseException) -> str:
    """First line of an exception's message, or its type's name where there is no message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
