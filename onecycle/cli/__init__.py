"""The command line: ``onecycle demo``, ``find``, ``train`` and ``predict``."""

from onecycle.cli.command_line import main

__all__ = ["main"]
