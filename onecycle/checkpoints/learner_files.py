"""Model, loss function and optimizer of a learner in a file, in evaluation mode."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from onecycle.checkpoints.model_files import read_model, write_model
from onecycle.core.restore import hold_modes
from onecycle.optim.modes import switch

if TYPE_CHECKING:
    from onecycle.core.state import LoopState


def save_learner(learn: LoopState, path: str | Path) -> str:
    """Write the file that `Learner.save` writes; leave the learner as it was.

    Args:
        learn: The learner.
        path: Where to write; a file that is there is replaced.

    Returns:
        The checksum of the file.
    """
    put_back = hold_modes(learn.opt)
    try:
        switch(learn.opt, training=False)
        if learn.sharded is not None:
            learn.sharded.check_joined()
        return write_model(path, learn)
    finally:
        put_back()


def load_learner(
    learn: LoopState, path: str | Path, *, with_opt: bool, checksum: str | None = None
) -> None:
    """Load the file that `save_learner` wrote.

    Args:
        learn: The learner.
        path: The file.
        with_opt: Load the optimizer's state too.
        checksum: What `save_learner` returned, where no other file will do. Of several processes
            the first one then reads for all, which must call this.

    Raises:
        CheckpointError: If the file is none of ours, another one, or does not fit; nothing is
            loaded then.
        OSError: If the file cannot be opened.
    """
    put_back = hold_modes(learn.opt)
    try:
        switch(learn.opt, training=False)  # as it was saved
        read_model(path, learn, with_opt=with_opt, checksum=checksum)
    except BaseException:
        put_back()
        raise
    switch(learn.opt, training=learn.running is not None and learn.training)
