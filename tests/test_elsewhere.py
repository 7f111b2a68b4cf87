"""Who comes from another library is told our name, and what is the same there runs here."""

import copy
import csv
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import onecycle
from onecycle import (
    Callback,
    Checkpoint,
    DataLoaders,
    EarlyStopping,
    GradientAccumulation,
    GradientClip,
    Learner,
    ReduceLROnPlateau,
    SaveModel,
    TensorLoader,
)
from onecycle.elsewhere import says_our_keywords
from onecycle.testing import toy_learner
from onecycle.vision import digits, image_folder


@pytest.mark.parametrize(
    ("there", "here"),
    [
        ("SaveModelCallback", "SaveModel"),  # fastai
        ("EarlyStoppingCallback", "EarlyStopping"),
        ("TerminateOnNaNCallback", "TerminateOnNonFinite"),
        ("ProgressCallback", "Progress"),
        ("ShortEpochCallback", "steps_per_epoch"),
        ("CancelFitException", "CancelFit"),
        ("CancelBatchException", "CancelBatch"),
        ("AvgMetric", "MeanMetric"),
        ("SchedCos", "cosine"),
        ("combine_scheds", "join"),
        ("combined_cos", "one_cycle"),
        ("ImageDataLoaders", "image_folder"),
        ("vision_learner", "splitter=head_splitter"),
        ("LabelSmoothingCrossEntropy", "LabelSmoothing"),
        ("load_learner", "load_predictor"),
        ("ClassificationInterpretation", r"learn.confusion_matrix\(\)"),
        ("show_batch", r"learn.show_batch\(\)"),
        ("ShowGraphCallback", "ShowGraph"),
        ("WandbCallback", "WandB"),
        ("TensorBoardLogger", "TensorBoard"),
        ("notebook_launcher", "launch"),
        ("BatchSizeFinder", r"learn.find_batch_size\(\)"),
        ("Trainer", "Learner"),  # Lightning
        ("LightningModule", "Learner"),
        ("ModelCheckpoint", "SaveModel"),
        ("LearningRateMonitor", "recorder.history"),
        ("LearningRateFinder", "learn.lr_find()"),
        ("StochasticWeightAveraging", "SWA"),
        ("GradientAccumulationScheduler", "GradientAccumulation"),
        ("RichProgressBar", "Progress"),
        ("LearningRateScheduler", "ParamScheduler"),  # Keras
        ("TerminateOnNaN", "TerminateOnNonFinite"),
        ("BackupAndRestore", "Checkpoint"),
        ("LambdaCallback", r"Callback\(after_batch=f\)"),
        ("OneCycleLR", "fit_one_cycle"),  # torch, transformers
        ("set_seed", "seed_everything"),
        ("TrainerCallback", "Callback"),
    ],
)
def test_a_class_of_another_library_is_answered_where_it_is_imported(there: str, here: str) -> None:
    with pytest.raises(ImportError, match=rf"'{there}'.*; here: .*{here}"):
        exec(f"from onecycle import {there}")
    with pytest.raises(ImportError, match=here):
        getattr(onecycle, there)


LEARN = toy_learner()


@pytest.mark.parametrize("name", ["stop_training", "should_stop"])
def test_what_stops_a_fit_elsewhere_is_refused_where_it_is_set(name: str) -> None:
    learn = toy_learner()
    with pytest.raises(AttributeError, match="here: raise CancelFit"):
        learn.fit(1, cbs=[Callback(after_batch=lambda learn: setattr(learn, name, True))])


@pytest.mark.parametrize("name", ["training_step", "configure_optimizers", "on_train_epoch_end"])
def test_a_method_that_nothing_would_call_is_refused_in_a_learner(name: str) -> None:
    with pytest.raises(TypeError, match=f"defines '{name}', a name of another library"):
        type("Mine", (Learner,), {name: lambda self: None})


@pytest.mark.parametrize(
    ("owner", "there", "here"),
    [
        (LEARN, "add_cb", r"added_cbs"),  # fastai
        (LEARN, "remove_cb", "removed_cbs"),
        (LEARN, "to_bf16", r"MixedPrecision\(\)"),
        (LEARN, "fit_fc", "fit_flat_cos"),
        (LEARN, "lr_find2", r"lr_find\(valid=True\)"),
        (LEARN, "loss_fn", "loss_func"),
        (LEARN, "smooth_loss", "plot_loss"),
        (LEARN, "no_logging", "no_bar"),
        (LEARN, "train_iter", "total_updates"),
        (LEARN, "global_step", "total_updates"),  # Lightning
        (LEARN, "current_epoch", "epoch"),
        (LEARN, "log", "history.series"),
        (LEARN, "trainer", "learn itself"),
        (LEARN, "should_stop", "CancelFit"),
        (LEARN, "evaluate", "validate"),  # Keras
        (LEARN, "compile", "opt_func="),
        (LEARN, "stop_training", "CancelFit"),
        (LEARN, "history", "recorder.history"),
        (LEARN.recorder, "losses", "history"),
        (LEARN.recorder, "plot_lr", "plot_sched"),
        (LEARN.dls, "train_dl", "train"),
        (LEARN.dls, "one_batch", "next"),
        (LEARN.dls, "show_batch", r"learn.show_batch\(\)"),
        (LEARN, "plot_top_losses", r"top_losses\(\).plot\(\)"),
        (LEARN, "plot_confusion_matrix", r"confusion_matrix\(\).plot\(\)"),
        (LEARN, "distrib_ctx", "onecycle.launch"),
        (LEARN, "scale_batch_size", "find_batch_size"),
        (LEARN.dls, "train_ds", "train.dataset"),
        (Callback(), "learn", r"after_batch\(self, learn\)"),
        (EarlyStopping(), "model", r"after_batch\(self, learn\)"),
    ],
)
def test_an_attribute_of_another_library_is_answered(owner: Any, there: str, here: str) -> None:
    with pytest.raises(AttributeError, match=rf"'{there}'.*; here: .*{here}") as caught:
        getattr(owner, there)
    assert (caught.value.name, caught.value.obj) == (there, owner)
    assert not hasattr(owner, there)


@pytest.mark.parametrize(
    ("call", "keywords", "here"),
    [
        (LEARN.fit_one_cycle, {"n_epoch": 1, "max_lr": 0.1}, "lr_max"),
        (LEARN.fit_one_cycle, {"n_epoch": 1, "lr": 0.1}, "lr_max"),
        (LEARN.fit_one_cycle, {"n_epoch": 1, "div_factor": 10}, "div"),
        (LEARN.fit_one_cycle, {"n_epoch": 1, "max_momentum": 0.9}, "moms"),
        (LEARN.fit_one_cycle, {"n_epoch": 1, "three_phase": True}, "policy="),
        (LEARN.fit_one_cycle, {"n_epoch": 1, "final_div_factor": 10}, "div_final"),
        (LEARN.fit_one_cycle, {"n_epoch": 1, "callbacks": []}, "cbs"),
        (LEARN.fit, {"epochs": 1}, "n_epoch"),
        (LEARN.fit, {"n_epoch": 1, "lr_max": 0.1}, "lr"),
        (LEARN.fit, {"n_epoch": 1, "learning_rate": 0.1}, "lr"),
        (LEARN.fit, {"n_epoch": None, "max_steps": 10}, "max_updates"),
        (LEARN.fit, {"n_epoch": 1, "start_epoch": 3}, "resume"),
        (LEARN.fit, {"n_epoch": 1, "validation_data": 3}, r"Learner\(\(train, valid\)"),
        (LEARN.fine_tune, {"n_epoch": 1}, "epochs"),
        (LEARN.fine_tune, {"epochs": 1, "lr": 1}, "base_lr"),
        (LEARN.lr_find, {"max_lr": 1}, "end_lr"),
        (LEARN.lr_find, {"num_training": 100}, "num_it"),
        (LEARN.get_preds, {"with_input": True}, "with_inputs"),
        (Learner, {"fast_dev_run": True}, r"learn.check\(\)"),
        (Learner, {"max_epochs": 3}, r"fit\(\) and fit_one_cycle\(\)"),
        (Learner, {"precision": 16}, r"MixedPrecision\(\)"),
        (Learner, {"gradient_clip_val": 1}, "GradientClip"),
        (Learner, {"accumulate_grad_batches": 2}, "GradientAccumulation"),
        (Learner, {"accelerator": "gpu"}, "device"),
        (Learner, {"optimizer": None}, "opt"),
        (Learner, {"criterion": None}, "loss_func"),
        (Learner, {"bs": 64}, "the loaders"),
        (SaveModel, {"fname": "best"}, "path"),
        (SaveModel, {"path": "a", "save_top_k": 3}, "keep"),
        (EarlyStopping, {"restore_best_weights": True}, "restore_best=True"),
        (ReduceLROnPlateau, {"gamma": 0.1}, "factor"),
        (GradientAccumulation, {"n_acc": 128}, "n_batches"),
        (GradientClip, {"clipnorm": 1}, "max_norm"),
        (Checkpoint, {"dirpath": "a"}, "folder"),
        (DataLoaders.from_datasets, {"train_ds": [1], "bs": 64}, "batch_size"),
        (TensorLoader, {"bs": 64}, "batch_size"),
        (image_folder, {"path": "a", "img_size": 64}, "size"),
    ],
)
def test_a_keyword_of_another_library_is_answered(call: Any, keywords: Any, here: str) -> None:
    wrong = list(keywords)[-1]
    with pytest.raises(TypeError, match=rf"\(\) takes no '{wrong}'; here: .*{here}"):
        call(**keywords)


def test_a_misspelt_keyword_is_answered_with_the_nearest_and_a_strange_one_with_all() -> None:
    with pytest.raises(TypeError, match=r"fit\(\) takes no 'n_epochz': did you mean 'n_epoch'"):
        LEARN.fit(n_epochz=1)
    with pytest.raises(TypeError, match=r"'frobnicate'; it takes cbs, extend, lr,"):
        LEARN.fit(1, frobnicate=1)


def test_a_keyword_that_has_two_names_is_not_proposed_twice() -> None:
    with pytest.raises(TypeError) as caught:
        LEARN.fit_one_cycle(1, lr_max=0.1, max_lr=0.1)
    assert "here: lr_max" not in str(caught.value)


def test_a_name_that_nobody_knows_is_an_error_as_anywhere() -> None:
    for owner in (onecycle, LEARN, LEARN.recorder, LEARN.dls, Callback()):
        with pytest.raises(AttributeError, match=r"has no attribute 'xyzzy'$"):
            owner.xyzzy  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'xyzzy'"):
        exec("from onecycle import xyzzy")


def test_no_name_of_another_library_is_one_that_is_here() -> None:
    from onecycle import elsewhere

    owners = {"Learner": LEARN, "Recorder": LEARN.recorder, "DataLoaders": LEARN.dls}
    here = {name for name in elsewhere._NAMES if name in vars(onecycle)}
    for kind, owner in owners.items():
        here |= {f"{kind}.{name}" for name in elsewhere._OF_ANY[kind] if hasattr(owner, name)}
    here |= {f"Callback.{name}" for name in elsewhere._OF_CALLBACKS if hasattr(Callback(), name)}
    assert here == set()


def test_what_is_proposed_is_there() -> None:
    from onecycle import elsewhere

    words = [here.split()[0].strip(",()") for here in elsewhere._NAMES.values()]
    named = [word for word in words if word.isidentifier() and word != "join"]
    assert [word for word in named if not hasattr(onecycle, word)] == []


def test_an_error_inside_a_property_is_not_taken_for_a_missing_name() -> None:
    class Own(Learner):
        @property
        def history(self) -> Any:
            return self.model.no_such_layer

    learn = Own(LEARN.dls, nn.Linear(4, 1), nn.functional.mse_loss)
    with pytest.raises(AttributeError, match="no_such_layer"):
        learn.history  # noqa: B018


def test_a_learner_is_copied_and_pickled_with_its_missing_names() -> None:
    for twin in (copy.deepcopy(LEARN), pickle.loads(pickle.dumps(toy_learner()))):
        with pytest.raises(AttributeError, match="added_cbs"):
            twin.add_cb(EarlyStopping())


def test_the_signature_stays_and_any_keyword_is_refused() -> None:
    import inspect

    assert next(iter(inspect.signature(EarlyStopping).parameters)) == "monitor"
    with pytest.raises(TypeError, match="takes any keyword"):
        says_our_keywords(lambda **options: None)


#: What a fastai user types, from the folder of images to a prediction; of these lines those
#: without the mark are typed there word for word.
IMPORTS = """
from pathlib import Path
from torch.nn.functional import cross_entropy
from onecycle import (
    ActivationStats, CSVLogger, EarlyStopping as EarlyStoppingCallback, GradientAccumulation,
    Learner, MixUp, SaveModel, ShowGraph as ShowGraphCallback, accuracy, head_splitter,
    load_predictor as load_learner, minimum, slide, steep, valley,
)
from onecycle.vision import digits_cnn, image_folder
body = digits_cnn(2, 3)
"""
SCRIPT = """
path = Path('mnist_sample')
dls = image_folder(path, 28, batch_size=64)  # ours
learn = Learner(dls, body, cross_entropy, metrics=accuracy, splitter=head_splitter)  # ours
learn.show_batch()  # ours
learn.summary()
sugg = learn.lr_find(suggest_funcs=(minimum, steep, valley, slide))
learn.fit_one_cycle(1, lr_max=sugg.valley)
learn.fine_tune(1, base_lr=2e-3)
learn.freeze()
learn.fit_one_cycle(1, 1e-3)
learn.unfreeze()
learn.fit_one_cycle(1, lr_max=slice(1e-5, 1e-3))
learn.recorder.plot_sched()
learn.recorder.plot_loss()
cbs = [SaveModel(monitor='accuracy', path='best')]  # ours
cbs += [EarlyStoppingCallback(monitor='valid_loss', patience=2)]
# ours: ReduceLROnPlateau is left out, for one cycle drives the rate
cbs += [MixUp(0.4)]
cbs += [GradientAccumulation(2)]  # ours
cbs += [CSVLogger()]
cbs += [ShowGraphCallback()]
cbs += [ActivationStats()]
learn = learn.to_fp16()
learn.fit_one_cycle(1, 1e-3, cbs=cbs)
vals = learn.recorder.values[-1]
learn.show_results()
interp = learn.confusion_matrix()  # ours
interp.plot()  # ours
preds, targs = learn.get_preds()
preds, targs, losses = learn.get_preds(with_loss=True)
p, t = learn.tta()
learn.save('stage1')
learn.load('stage1')
learn.export('model.pkl')
learn2 = load_learner('model.pkl')
label, idx, probs = learn2.predict(path/'valid'/'three'/'7.png')
"""


def write_digits(folder: Path) -> None:
    """Write threes and sevens as files, in a folder for each class."""
    for part, dl in (("train", digits().train), ("valid", digits().valid)):
        images, labels = dl.tensors  # type: ignore[attr-defined]
        for name, label in (("three", 3), ("seven", 7)):
            place = folder / part / name
            place.mkdir(parents=True)
            for i, image in enumerate(images[labels == label][:64]):
                low, high = image.min(), image.max()
                pixels = (255 * (image[0] - low) / (high - low)).byte().numpy()
                Image.fromarray(pixels).save(place / f"{i}.png")


@pytest.mark.slow
def test_a_fastai_script_of_36_lines_runs_with_eight_of_them_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = SCRIPT.strip().splitlines()
    assert (len(lines), sum("# ours" in line for line in lines)) == (36, 8)
    monkeypatch.chdir(tmp_path)
    write_digits(tmp_path / "mnist_sample")
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    exec(compile(IMPORTS, "imports", "exec"), names)
    exec(compile(SCRIPT, "script", "exec"), names)
    capsys.readouterr()
    learn, preds, targs, losses = (names[each] for each in ("learn", "preds", "targs", "losses"))
    own = nn.functional.cross_entropy(preds, targs, reduction="none")
    torch.testing.assert_close(losses, own)
    assert torch.equal(names["t"], targs)
    assert names["p"].shape == preds.shape
    last = [learn.recorder.history[name].values[-1] for name in ("valid_loss", "accuracy")]
    assert names["vals"][1:] == last
    assert names["label"] == ["seven", "three"][names["idx"]]
    assert int(names["probs"].argmax()) == names["idx"]
    assert float(names["probs"].sum()) == pytest.approx(1, abs=1e-5)
    with open("history.csv") as file:
        assert len(list(csv.reader(file))) == 2


def test_saving_and_loading_by_a_bare_name_brings_the_weights_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    learn = toy_learner()
    learn.save("stage1")
    before: list[Tensor] = [p.clone() for p in learn.model.parameters()]
    learn.fit(1)
    learn.load("stage1")
    assert all(map(torch.equal, before, learn.model.parameters()))
