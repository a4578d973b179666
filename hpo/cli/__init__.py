"""The command line: options become library calls, errors become exit codes, records become tables."""

from hpo.cli.main import main

__all__ = ["main"]
