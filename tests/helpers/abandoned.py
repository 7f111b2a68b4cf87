"""Temporary files as a writer leaves them that is killed."""

from onecycle import files


def temporary_name(target: str, process: int, begin: str = "1", machine: str | None = None) -> str:
    """Name the temporary file of a process that began at a time, on this machine or another."""
    return f".{target}.{machine or files._machine()}-{process}-{begin}.abc_123.tmp"
