"""A callback that takes part in range tests, in training batches."""

from typing import Any

from onecycle import Callback, Stage


def watcher(**events: Any) -> Callback:
    callback = Callback(**events)
    callback.stage, callback.during = Stage.PREPARE, "train"
    return callback
