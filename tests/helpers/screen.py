"""A clock and a terminal that do as they are told."""

import io

from onecycle import Callback, Learner


class Clock:
    """A clock that goes on by a fixed time with each batch, and not by itself."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def callback(self, seconds: float) -> Callback:
        def go_on(learn: Learner) -> None:
            self.now += seconds

        return Callback(before_batch=go_on)


class Terminal(io.StringIO):
    """What is written to a terminal; ``with redirect_stdout(terminal):`` writes to it."""

    def isatty(self) -> bool:
        return True
