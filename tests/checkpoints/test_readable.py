"""What is written can be read again; what cannot is named before."""

import io
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from onecycle import Learner
from onecycle.checkpoints.readable import readable
from onecycle.testing import toy_learner


def through_a_file(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (
            {"a": np.float64(0.1), "b": [np.int64(2), (np.bool_(True),)]},
            {"a": 0.1, "b": [2, (True,)]},
        ),
        (OrderedDict(a=np.float32(0.5)), OrderedDict(a=0.5)),
        ({1: None, "x": {2, 3}}, {1: None, "x": {2, 3}}),
        ([torch.float16, torch.device("cpu"), torch.Size([2]), b"raw", 1j], None),
        (np.str_("text"), "text"),
    ],
)
def test_what_is_let_through_comes_back(given, read):
    assert through_a_file(readable(given, "it")) == (given if read is None else read)


class Own:
    pass


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (Own(), "the state, is a Own, which could not be read again"),
        ({"a": [1, Own()]}, "the state, at 'a', at 1, is a Own"),
        ({"a": np.zeros(3)}, "the state, at 'a', is a ndarray"),
        ({np.int64(1): 2}, "the state, is a dict"),
        (lambda: 1, "the state, is a function"),
    ],
)
def test_what_could_not_be_read_again_is_named_with_its_place(given, words):
    with pytest.raises(TypeError, match=words):
        readable(given, "the state")


def test_the_state_of_a_model_is_not_copied_and_keeps_its_versions():
    state = nn.BatchNorm1d(3).state_dict()
    assert readable(state, "it") is state
    state["more"] = np.float64(1)
    made = readable(state, "it")
    assert made._metadata == state._metadata
    assert made["weight"] is state["weight"]
    assert type(state["more"]) is np.float64


class Scaled(nn.Linear):
    scale = 0.0

    def get_extra_state(self):
        return {"scale": np.float64(self.scale)}

    def set_extra_state(self, state):
        self.scale = state["scale"]


def test_numbers_of_numpy_are_saved_and_loaded(tmp_path):
    def make():
        toy = toy_learner()
        return Learner(
            toy.dls, Scaled(4, 1), toy.loss_func, device="cpu", seed=0, wd=np.float64(0.01)
        )

    learn, other = make(), make()
    learn.model.scale = 3.5
    learn.save(tmp_path / "a")
    other.load(tmp_path / "a")
    assert other.model.scale == 3.5
    assert other.groups.get("weight_decay") == [0.01]


def test_a_model_whose_state_could_not_be_loaded_is_refused_by_save(tmp_path):
    learn = toy_learner()
    learn.model.register_module("own", Scaled(4, 1))
    learn.model.own.get_extra_state = Own
    with pytest.raises(TypeError, match=r"the model, at 'own\._extra_state', is a Own"):
        learn.save(tmp_path / "a")
    assert not (tmp_path / "a").exists()
