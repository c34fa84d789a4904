"""The one exception for mistakes a user can mend."""


class UserError(ValueError):
    """A mistake in a config, a file or an argument.

    The message is one line: what is wrong, where (file:line or config key), what is allowed.
    The command line prints it without a traceback and exits with status 2; from Python it is an
    ordinary ``ValueError``.
    """
