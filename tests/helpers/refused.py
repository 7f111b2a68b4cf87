"""What is refused before the first batch, with nothing changed."""

import pytest
import torch

from onecycle import Callback
from onecycle.testing import toy_learner


def refused(error, words, *cbs, learn=None, **fit):
    learn, batches = learn or toy_learner(4), []
    before = [p.detach().clone() for p in learn.model.parameters()]
    with pytest.raises(error, match=words):
        learn.fit(1, cbs=[*cbs, Callback(before_batch=batches.append)], **fit)
    assert not batches
    assert all(map(torch.equal, learn.model.parameters(), before))
