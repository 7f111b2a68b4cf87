import pytest
import torch
from image_learner import image_learner
from learner_state import LearnerState

from onecycle import Callback, ChannelsLast, Learner
from onecycle.testing import toy_learner


def is_channels_last(tensor: torch.Tensor) -> bool:
    return tensor.is_contiguous(memory_format=torch.channels_last)


def strides(learn: Learner) -> list[tuple[int, ...]]:
    """List the layouts of weights, gradients and optimizer state."""
    found = [p.stride() for p in learn.model.parameters()]
    found += [p.grad.stride() for p in learn.model.parameters() if p.grad is not None]
    state = learn.opt.state.values()
    return found + [t.stride() for held in state for t in held.values()]


def layouts_of_the_convolution(learn: Learner) -> list[tuple[bool, bool]]:
    """Return a list that grows: whether input and output had their channels last, each time."""
    found = []
    learn.model[0].register_forward_hook(
        lambda _, inputs, out: found.append((is_channels_last(inputs[0]), is_channels_last(out)))
    )
    return found


def test_images_have_their_channels_last_through_the_convolution_in_every_run() -> None:
    learn = image_learner(cbs=[ChannelsLast()], check=False)
    found = layouts_of_the_convolution(learn)
    learn.fit(1)
    learn.lr_find(num_it=3, show_plot=False)
    learn.get_preds()
    assert found == [(True, True)] * (16 + 3 + 8)
    with learn.removed_cbs(ChannelsLast):
        learn.get_preds()
    assert found[-1] == (False, False)


def test_fits_with_and_without_it_can_follow_one_another() -> None:
    """The fused optimizer would go wrong if weights changed their layout under way."""
    records = []
    for channels_last in ([False] * 3, [False, True, False]):
        learn, layouts = image_learner(), []
        look = Callback(before_step=lambda learn, found=layouts: found.append(strides(learn)))
        for on in channels_last:
            learn.fit(1, 0.05, cbs=[look, *([ChannelsLast()] if on else [])])
        history = learn.recorder.history
        records.append((layouts, history["train_loss"].values, history["valid_loss"].values))
    (plain_layouts, *plain), (layouts, *mixed) = records
    assert layouts == plain_layouts
    for expected, found in zip(plain, mixed, strict=True):
        assert found == pytest.approx(expected, rel=1e-4)


def test_a_range_test_leaves_nothing_behind() -> None:
    learn = image_learner(cbs=[ChannelsLast()])
    learn.fit(1)
    before, layouts = LearnerState(learn), strides(learn)
    learn.lr_find(num_it=5, show_plot=False)
    assert before.changes(LearnerState(learn)) == []
    assert strides(learn) == layouts


def test_what_is_no_image_is_left_alone() -> None:
    with_it, without = toy_learner(), toy_learner()
    with_it.fit(1, cbs=[ChannelsLast()])
    without.fit(1)
    assert with_it.validate() == without.validate()
