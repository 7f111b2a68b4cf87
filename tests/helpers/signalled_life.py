"""One life of a fit that is sent SIGTERM: `signalled_life.py FOLDER [SECONDS]`.

The signal comes so many seconds after the first update; without them, not at all. At the end of
the fit a digest of its weights and record is printed, and on stderr the seconds that it took.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import sys
import threading
import time

import numpy as np
import torch
from learner_state import trained

from onecycle import Callback, Checkpoint
from onecycle.testing import toy_learner


def main(folder: str, seconds: str) -> None:
    torch.set_num_threads(1)
    random.seed(0), np.random.seed(0), torch.manual_seed(0)  # they are among the bits

    def begin(learn: object) -> None:
        if learn.total_updates == 1:
            send = threading.Timer(float(seconds), os.kill, (os.getpid(), signal.SIGTERM))
            send.daemon = True
            send.start()

    learn = toy_learner(n_batches=50)
    slow = Callback(after_batch=lambda learn: time.sleep(0.001))
    cbs = [Checkpoint(folder, "1000 updates", on_signal=True), slow]
    began = time.monotonic()
    with learn.no_bar():
        learn.fit_one_cycle(
            20, 0.05, cbs=[*cbs, *([Callback(after_step=begin)] if seconds else [])], resume=folder
        )
    print(time.monotonic() - began, file=sys.stderr)
    print(hashlib.sha256(repr(sorted(trained(learn).items())).encode()).hexdigest())


if __name__ == "__main__":
    main(*sys.argv[1:])
