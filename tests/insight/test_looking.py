import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from image_learner import image_learner
from learner_state import LearnerState
from torch import nn

from onecycle import Callback, CancelBatch, DataLoaders, Learner, RandomFlip, Stage, TensorLoader
from onecycle.testing import toy_learner
from onecycle.vision.datasets import _Normalize


def texts(ax):
    return [text.get_text() for text in ax.texts]


def pixels(ax):
    return [np.asarray(image.get_array(), dtype=float) for image in ax.images]


def stretched(x):
    """Scale all images at once to [0, 1], with channels last."""
    return ((x - x.min()) / (x.max() - x.min())).permute(0, 2, 3, 1).double().numpy()


def test_batch_is_the_one_that_the_next_epoch_begins_with_augmented_as_there():
    learn, seen = image_learner(cbs=[RandomFlip()]), []
    ax = learn.show_batch(4)

    def look(learn):
        seen.append((learn.xb.clone(), learn.yb.clone()))

    learn.fit(1, cbs=[Callback(after_pred=look, during="train")])
    x, y = seen[0]
    np.testing.assert_allclose(np.stack(pixels(ax)), stretched(x), atol=1e-6)
    assert texts(ax) == [str(label) for label in y.tolist()]
    raw = learn.dls.train.tensors[0]
    is_raw = [any(torch.equal(each, image) for image in raw) for each in x]
    assert not all(is_raw)  # or the test would see no augmentation at all


def test_looking_leaves_everything_as_it_was():
    learn = image_learner(cbs=[RandomFlip()])
    learn.fit(1)
    before = LearnerState(learn)
    learn.show_batch()
    learn.show_results()
    learn.top_losses(2)
    learn.confusion_matrix()
    assert before.changes(LearnerState(learn)) == []


def test_normalisation_of_a_loader_is_taken_back_to_the_bytes():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (8, 3, 6, 6), generator=generator, dtype=torch.uint8)
    transform = _Normalize([0.4, 0.5, 0.6], [0.2, 0.3, 0.1])
    loader = TensorLoader(images, torch.arange(8) % 3, batch_size=4, transform=transform)
    learn = image_learner()
    learn.dls = DataLoaders(loader, loader, classes=["cat", "dog", "cow"])
    shown = np.stack(pixels(learn.show_results(8))) * 255
    np.testing.assert_allclose(shown, images.permute(0, 2, 3, 1).numpy(), atol=1e-3)


def test_results_name_the_wrong_class_and_the_right_one_and_frame_the_image():
    x = torch.eye(3).view(3, 1, 1, 3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 3, bias=False))
    nn.init.eye_(model[1].weight)
    loader = TensorLoader(x, torch.tensor([0, 1, 0]))
    dls = DataLoaders(loader, loader, classes=["cat", "dog", "cow"])
    learn = Learner(dls, model, nn.functional.cross_entropy, device="cpu", seed=0)
    ax = learn.show_results()
    assert texts(ax) == ["cat", "dog", "cow, is cat"]
    assert [text.get_fontweight() for text in ax.texts] == ["normal", "normal", "bold"]
    assert len(ax.patches) == 1
    given = plt.subplots()[1]
    assert learn.show_batch(1, ax=given) is given


def test_vectors_are_rows_and_wide_ones_are_cut():
    learn = toy_learner()
    ax = learn.show_results(2)
    assert texts(ax)[:6] == ["x0", "x1", "x2", "x3", "target", "prediction"]
    first = learn.dls.valid.tensors[0][0].tolist()
    assert texts(ax)[6:10] == [f"{value:.4g}" for value in first]
    wide = TensorLoader(torch.arange(40.0).view(2, 20), torch.zeros(2, 1))
    learn = Learner((wide, wide), nn.Linear(20, 1), nn.functional.mse_loss, device="cpu")
    assert texts(learn.show_batch(1))[:7] == ["x0", "x1", "x2", "x3", "x4", "...", "target"]
    assert texts(learn.show_batch(1))[12] == "15 more"


def test_tokens_are_decoded_where_it_is_said_how():
    x = torch.arange(16).view(2, 8)
    loader = TensorLoader(x, torch.tensor([0, 1]))
    model = nn.EmbeddingBag(16, 2)
    learn = Learner((loader, loader), model, nn.functional.cross_entropy, device="cpu")
    assert texts(learn.show_results(1))[3] == "0 1 2 3 4 5 6 7"
    shown = texts(learn.show_results(2, decode=lambda x: f"from {int(x[0])} for $1"))
    assert shown[0] == "text"
    assert [shown[3], shown[6]] == [r"from 0 for \$1", r"from 8 for \$1"]
    columns = texts(learn.show_results(1, decode=lambda x: {"a": x[0], "b": "word"}))
    assert columns[:2] + columns[4:6] == ["a", "b", "0", "word"]


def test_what_cannot_be_shown_and_what_is_no_decoder_is_refused():
    x = torch.zeros(4, 7, 5)  # may be anything
    loader = TensorLoader(x, torch.zeros(4, 7, 1))
    learn = Learner((loader, loader), nn.Linear(5, 1), nn.functional.mse_loss, device="cpu")
    with pytest.raises(TypeError, match=r"\(7, 5\) float32, which is no image .* give decode="):
        learn.show_batch()
    with pytest.raises(TypeError, match="decode"):
        learn.show_batch(decode="abc")
    with pytest.raises(TypeError, match=r"decode returned \(7, 5\) float32"):
        learn.show_batch(decode=lambda x: x)
    never = Callback(before_batch=cancel)
    never.stage = Stage.PREPARE
    with learn.added_cbs([never]), pytest.raises(ValueError, match="every batch was cancelled"):
        learn.show_results()


def cancel(learn):
    raise CancelBatch
