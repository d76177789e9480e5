"""The command line: parse, call, print."""

from manystream.cli.main import main

__all__ = ["main"]
