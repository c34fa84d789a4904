"""The command line: arguments, one-line errors, exit status, and what each command does.

Others use :func:`simcse.cli.main.main`.
"""
