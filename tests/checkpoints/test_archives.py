"""What is written is hashed as it is, and is no larger when it is read."""

import hashlib
import io
import zipfile

import pytest
import torch

from onecycle.checkpoints.archives import Hashed, is_expanded, read_archive
from onecycle.checkpoints.readable import readable


def test_the_bytes_that_are_heard_are_those_that_are_written():
    file, digest = io.BytesIO(), hashlib.sha256()
    torch.save({"a": torch.randn(300_000)}, Hashed(file, digest.update))
    assert digest.hexdigest() == hashlib.sha256(file.getvalue()).hexdigest()
    assert zipfile.is_zipfile(file)


def test_an_expanded_tensor_is_written_as_large_as_it_is():
    value = torch.ones(1).expand(5)
    assert is_expanded(value)
    file = io.BytesIO()
    torch.save(readable({"a": value}, "it"), file)
    assert read_archive(file.getvalue())["a"].tolist() == [1.0] * 5


def test_views_of_one_tensor_are_not_expanded():
    whole = torch.arange(6.0)
    file = io.BytesIO()
    torch.save([whole[:3], whole[2:], whole.reshape(2, 3).t()], file)
    assert [part.tolist() for part in read_archive(file.getvalue())][1] == [2.0, 3.0, 4.0, 5.0]


def test_what_contains_itself_is_refused():
    endless = []
    endless.append(endless)
    file = io.BytesIO()
    torch.save(endless, file)
    with pytest.raises(ValueError, match="in each other"):
        read_archive(file.getvalue())


def test_bytes_that_can_change_are_refused_when_they_are_written():
    with pytest.raises(TypeError, match="is a bytearray, which could not be read again"):
        readable({"a": bytearray(3)}, "it")
