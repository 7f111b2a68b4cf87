"""Stub, to be replaced."""

from onecycle.callback import Callback


class Progress(Callback):
    """Nothing yet."""
