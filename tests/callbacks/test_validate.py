"""Validation when it is wanted: where, on what, who acts on it, and that training hears nothing."""

import signal
from itertools import count, islice

import numpy as np
import pytest
import torch
from learner_state import trained
from scripted import Scripted, same, weights
from torch import nn
from torch.nn.functional import mse_loss

from onecycle import (
    EMA,
    SWA,
    Callback,
    Checkpoint,
    CSVLogger,
    DataLoaders,
    EarlyStopping,
    GradientAccumulation,
    Learner,
    Progress,
    Recorder,
    ReduceLROnPlateau,
    SaveModel,
    TensorLoader,
    Validate,
    mse,
)
from onecycle.callbacks import validate as validate_module
from onecycle.testing import toy_learner

N = 8  # batches of an epoch


def validated_at(learn):
    return learn.recorder.history["valid_loss"].updates.tolist()


def sets(learn, **loaders):
    learn.dls = DataLoaders(learn.dls.train, loaders)
    return learn


def noise(n, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, generator=generator)
    return TensorLoader(x, x.sum(1, keepdim=True), batch_size=8)


# When ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("every", "fit", "updates"),
    [
        ("1 epoch", {"n_epoch": 3}, [8, 16, 24]),
        ("3 updates", {"n_epoch": 2}, [3, 6, 9, 12, 15, 16]),
        ("8 updates", {"n_epoch": 2}, [8, 16]),
        ("100 updates", {"n_epoch": 2}, [16]),
        ("0.25 epochs", {"n_epoch": 2}, [2, 4, 6, 8, 10, 12, 14, 16]),
        ("0.3 epochs", {"n_epoch": 1}, [3, 5, 8]),  # 2.4, 4.8 and 7.2 batches
        ("1.5 epochs", {"n_epoch": 3}, [12, 24]),
        ("2 epochs", {"n_epoch": 5}, [16, 32, 40]),
        ("2 epochs", {"n_epoch": 1.5}, [12]),
        ("5 updates", {"n_epoch": None, "max_updates": 11}, [5, 10, 11]),
    ],
)
def test_it_comes_as_often_as_asked_and_at_the_end_of_the_fit(every, fit, updates):
    learn = toy_learner(n_batches=N)
    learn.fit(**fit, cbs=[Validate(every)])
    assert validated_at(learn) == updates


def test_it_waits_for_the_update_that_gradients_wait_for():
    learn = toy_learner(n_batches=N)
    learn.fit(1, cbs=[GradientAccumulation(3), Validate("0.5 epochs")])
    assert validated_at(learn) == [2, 3]  # due after 4 batches, the update is made after 6


def test_minutes_are_those_since_the_last_one(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(validate_module.time, "monotonic", lambda: now[0])

    def tick(learn):
        now[0] += 30

    learn = toy_learner(n_batches=N)
    learn.fit(2, cbs=[Validate("1.5 minutes"), Callback(after_step=tick)])
    assert validated_at(learn) == [3, 6, 9, 12, 15, 16]


def test_a_loader_without_a_length_is_validated_by_updates_alone():
    batches = list(toy_learner(n_batches=N).dls.train)

    class Endless:
        def __iter__(self):
            return (batches[i % N] for i in count())

    learn = toy_learner()
    learn.dls = DataLoaders(Endless(), learn.dls.valid)
    learn.fit(None, max_updates=7, cbs=[Validate("3 updates")])
    assert validated_at(learn) == [3, 6, 7]
    with pytest.raises(ValueError, match="has no length: give steps_per_epoch="):
        learn.fit(None, max_updates=7, cbs=[Validate("0.5 epochs")])
    learn.fit(1, steps_per_epoch=4, cbs=[Validate("0.5 epochs")])
    assert validated_at(learn)[3:] == [9, 11]


@pytest.mark.parametrize(
    "every", ["0 updates", "2.5 updates", "daily", "1 hour", 5, None, "-1 epochs"]
)
def test_another_cadence_is_refused(every):
    with pytest.raises(
        ValueError, match=r"every must be like '50 updates', '0.25 epochs', '1 epoch'"
    ):
        Validate(every)


def test_what_cannot_work_is_refused_before_the_first_batch():
    learn = toy_learner()
    with pytest.raises(ValueError, match="two Validate"):
        learn.fit(1, cbs=[Validate(), Validate("2 epochs")])
    learn.dls.valid = None
    with pytest.raises(ValueError, match="needs a validation loader"):
        learn.fit(1, cbs=[Validate()])
    assert learn.total_updates == 0


# What it sees ---------------------------------------------------------------------------------


def test_each_value_is_that_of_a_loop_by_hand_over_the_first_batches_of_each_set():
    learn = sets(toy_learner(n_batches=N), clean=noise(40, 1), noisy=noise(24, 2))
    seen = {}
    keep = Callback(after_step=lambda learn: seen.update({learn.total_updates: weights(learn)}))
    learn.fit_one_cycle(1, 0.1, cbs=[Validate("3 updates", batches=4), keep])
    assert validated_at(learn) == [3, 6, 8]
    for name, loader in (("valid_loss", noise(40, 1)), ("valid_loss/noisy", noise(24, 2))):
        batches = list(islice(loader, 4))
        assert len(batches) == (4 if name == "valid_loss" else 3)
        x, y = map(torch.cat, zip(*batches, strict=True))
        by_hand = []
        for update in (3, 6, 8):
            learn.model.load_state_dict(seen[update])
            with torch.no_grad():
                by_hand.append(mse_loss(learn.model(x), y).item())
        history = learn.recorder.history
        assert history[name].values.tolist() == pytest.approx(by_hand, rel=1e-6)
        metric = name.replace("valid_loss", "mse")
        assert history[metric].values.tolist() == pytest.approx(by_hand, rel=1e-6)
        assert history[metric].updates.tolist() == [3, 6, 8]


def test_a_validation_set_may_be_endless_where_batches_are_limited():
    batch = next(iter(noise(8, 1)))

    class Endless:
        def __iter__(self):
            return iter(lambda: batch, None)

    learn = toy_learner(n_batches=N)
    learn.dls = DataLoaders(learn.dls.train, Endless())
    learn.fit(1, cbs=[Validate(batches=3)])
    with torch.no_grad():
        expected = mse_loss(learn.model(batch[0]), batch[1]).item()
    assert learn.recorder.history["valid_loss"].values.tolist() == pytest.approx([expected])


def test_validate_and_check_measure_every_set_by_the_names_of_the_record():
    learn = sets(toy_learner(n_batches=N), clean=noise(40, 1), noisy=noise(24, 2))
    learn.fit(1)
    history = learn.recorder.history
    last = {
        n: history[n].values[-1] for n in ("valid_loss", "mse", "valid_loss/noisy", "mse/noisy")
    }
    assert learn.validate() == last
    assert learn.validate(noise(24, 2)) == {
        "valid_loss": last["valid_loss/noisy"],
        "mse": last["mse/noisy"],
    }
    assert list(learn.check().valid) == list(last)


@pytest.mark.parametrize(
    ("valid", "error", "words"),
    [
        ({}, ValueError, "names no validation set"),
        ({"a/b": [1]}, ValueError, "must have no '/'"),
        ({"": [1]}, TypeError, "a name in valid must be a text"),
        ({"a": [1], "b": []}, ValueError, r"validation loader is empty"),
        ({"a": [1], "b": iter([1])}, TypeError, "iterated only once"),
    ],
)
def test_sets_that_are_none_are_refused(valid, error, words):
    with pytest.raises(error, match=words):
        DataLoaders([1], valid)


def test_a_name_that_two_series_would_have_is_refused():
    learn = sets(
        toy_learner(metrics=[Scripted([0] * 9, "mse"), Scripted([0] * 9, "mse/noisy")]),
        clean=noise(8, 1),
        noisy=noise(8, 2),
    )
    with pytest.raises(ValueError, match="two series would be called 'mse/noisy'"):
        learn.fit(1)


# What training hears of it --------------------------------------------------------------------


def dropout_learner(cbs=(), **options):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 1))
    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    loader = TensorLoader(x, x.sum(1, keepdim=True), batch_size=8, shuffle=True)
    given = {"metrics": [mse], "seed": 3, "device": "cpu"} | options
    learn = Learner((loader, [next(iter(noise(8, 1)))]), model, mse_loss, cbs=cbs, **given)
    learn.cbs = [cb for cb in learn.cbs if not isinstance(cb, Progress)]
    return learn


class Draws:
    """A validation set that draws from torch's generator."""

    def __iter__(self):
        for _ in range(2):
            x = torch.randn(8, 4)
            yield x, x.sum(1, keepdim=True)


def training_of(every=None, cbs=()):
    learn = dropout_learner()
    learn.dls = DataLoaders(learn.dls.train, {"first": learn.dls.valid, "draws": Draws()})
    torch.manual_seed(5)
    learn.fit_one_cycle(2, 0.1, cbs=[*cbs, *([Validate(every)] if every else [])])
    history = learn.recorder.history
    series = [history[name].values.tobytes() for name in ("train_loss", "lr", "momentum")]
    return weights(learn), series, torch.get_rng_state().tolist()


@pytest.mark.parametrize(
    "cbs", [list, lambda: [EMA(0.9)], lambda: [SWA(0.3)]], ids=["", "EMA", "SWA"]
)
def test_training_has_the_same_bits_as_without_it(cbs):
    expected = training_of(cbs=cbs())
    for every in ("1 update", "3 updates", "0.5 epochs", "2 epochs"):
        found = training_of(every, cbs())
        assert same(found[0], expected[0]), every
        assert found[1:] == expected[1:], every


def test_a_validation_by_hand_that_draws_would_change_the_bits():
    def draw(learn):
        for x, y in learn.dls.more_valid["draws"]:
            mse_loss(learn.model(x), y)

    found = training_of(cbs=[Callback(after_step=draw)])
    assert not same(found[0], training_of()[0])


def test_the_training_loader_itself_may_be_validated_on():
    def run(**options):
        learn = dropout_learner()
        data = torch.utils.data.TensorDataset(*learn.dls.train.tensors)
        loader = torch.utils.data.DataLoader(data, 8, shuffle=True)
        learn.dls = DataLoaders(loader, loader)
        learn.fit(2, 0.1, **options)
        return learn

    learn = run(cbs=[Validate("2 updates")])
    assert same(weights(learn), weights(run()))
    assert validated_at(learn) == [2, 4, 6, 8, 10]


def test_the_batch_of_training_is_there_again_for_the_callbacks_behind_it():
    seen = []

    def look(learn):
        if learn.training:
            seen.append(
                (
                    learn.iter,
                    learn.n_iter,
                    learn.model.training,
                    learn.event,
                    learn.pred.requires_grad,
                )
            )

    learn = toy_learner(n_batches=4)
    learn.fit(1, cbs=[Validate("1 update"), Callback(after_batch=look)])
    assert seen == [(i, 4, True, "after_batch", True) for i in range(4)]


def test_an_error_in_it_says_where_it_was():
    learn = toy_learner(n_batches=4)
    learn.dls.valid = [*learn.dls.valid, (torch.zeros(8, 3), torch.zeros(8, 1))]
    with pytest.raises(RuntimeError) as caught:
        learn.fit(1, cbs=[Validate("2 updates")])
    assert any("validation batch 4, after 2 updates" in note for note in caught.value.__notes__)
    assert learn.running is None
    assert learn.between_batches == 0


def test_a_range_test_in_such_a_fit_leaves_nothing_behind():
    def test(learn):
        if learn.n_updates == 4:
            learn.lr_find(num_it=10, show_plot=False)

    learn, other = toy_learner(n_batches=N), toy_learner(n_batches=N)
    learn.fit(2, 0.1, cbs=[Validate("3 updates"), Callback(after_step=test)])
    other.fit(2, 0.1, cbs=[Validate("3 updates")])
    assert trained(learn) == trained(other)
    assert validated_at(learn) == validated_at(other) == [3, 6, 9, 12, 15, 16]


# Who acts on it -------------------------------------------------------------------------------


def test_early_stopping_counts_validations_and_ends_the_fit_between_two_batches():
    learn = toy_learner(n_batches=N, metrics=[Scripted([1, 2, 3, 3, 3, 9], "score")])
    learn.fit(5, cbs=[Validate("3 updates"), EarlyStopping("score", mode="max", patience=2)])
    assert learn.n_updates == 15
    assert learn.recorder.history["score"].values.tolist() == [
        1,
        2,
        3,
        3,
        3,
    ]
    assert learn.stop_reason == "score has not improved on 3 for 2 validations"


def test_a_further_set_is_monitored_by_its_name_after_all_sets_are_done():
    values = iter([1, 5, 2, 4, 3, 9])  # the main set, the other one, and so on
    learn = sets(
        toy_learner(n_batches=N, metrics=[Scripted(values, "accuracy")]),
        main=noise(8, 1),
        error=noise(8, 2),
    )
    learn.fit(
        3, cbs=[Validate("2 updates"), EarlyStopping("accuracy/error")]
    )  # a metric: more is better
    history = learn.recorder.history
    assert learn.n_updates == 4
    assert history["accuracy"].values.tolist() == [1, 2]
    assert history["accuracy/error"].values.tolist() == [5, 4]
    with pytest.raises(
        ValueError, match="records train_loss, valid_loss, accuracy, valid_loss/error"
    ):
        learn.fit(1, cbs=[EarlyStopping("accuracy/noisy")])


def test_the_rate_falls_in_the_middle_of_an_epoch():
    learn = toy_learner(n_batches=N, metrics=[Scripted([1, 1, 1, 1], "score")])
    plateau = ReduceLROnPlateau("score", mode="max", factor=0.5)
    learn.fit(1, 0.25, cbs=[Validate("2 updates"), plateau])
    assert learn.recorder.history["lr"].values.tolist() == [0.25] * 4 + [0.125] * 2 + [0.0625] * 2


def test_the_best_validation_is_saved_wherever_it_stands(tmp_path):
    learn = toy_learner(n_batches=N, metrics=[Scripted([1, 4, 2, 3, 0, 0], "score")])
    seen = {}
    keep = Callback(after_step=lambda learn: seen.update({learn.total_updates: weights(learn)}))
    save = SaveModel(tmp_path / "{update}.pt", "score", mode="max", keep=2)
    learn.fit(2, 0.05, cbs=[Validate("3 updates"), keep, save])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["12.pt", "6.pt"]
    assert same(weights(learn), seen[6])


def test_files_of_one_epoch_that_would_replace_each_other_are_refused(tmp_path):
    save = SaveModel(tmp_path / "{epoch}.pt", keep=2)
    with pytest.raises(ValueError, match=r"write {update} into the path"):
        toy_learner(n_batches=N).fit(1, cbs=[Validate("3 updates"), save])


def test_the_table_has_a_row_for_each_and_the_log_the_last_of_an_epoch(tmp_path, capsys):
    learn = toy_learner(n_batches=N, metrics=[Scripted(range(1, 9), "score")])
    learn.fit(2, cbs=[Progress(), CSVLogger(tmp_path / "log.csv"), Validate("3 updates")])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows] == ["epoch", "0.37", "0.75", "0", "1.12", "1.50", "1.87", "1"]
    assert [float(row[3]) for row in rows[1:3]] == [1, 2]
    assert [float(row[3]) for row in rows[4:]] == [3, 4, 5, 6]
    losses = learn.recorder.history["train_loss"].values
    means = [losses[a:b].mean() for a, b in ((0, 3), (3, 6), (6, 8), (8, 9))]
    assert [float(row[1]) for row in rows[1:5]] == pytest.approx(means, abs=1e-6)
    log = [line.split(",") for line in (tmp_path / "log.csv").read_text().splitlines()]
    assert [row[3] for row in log] == ["score", "2.0", "6.0"]


def test_every_set_is_a_curve_of_its_own():
    learn = sets(toy_learner(n_batches=N), clean=noise(40, 1), noisy=noise(24, 2))
    learn.fit(2, cbs=[Validate("4 updates")])
    lines = {line.get_label(): line for line in learn.recorder.plot_loss().lines}
    for label, name in (("validation", "valid_loss"), ("validation noisy", "valid_loss/noisy")):
        assert np.array_equal(lines[label].get_ydata(), learn.recorder.history[name].values)
    metrics = learn.recorder.plot_metrics()
    assert [line.get_label() for line in metrics.lines] == ["mse", "mse/noisy"]


def test_compare_tells_epochs_by_updates_and_not_by_validations():
    learn = toy_learner(n_batches=4, cbs=(Validate("2 updates"),))
    found = learn.compare(3, 0.05, ["constant"], seeds=[0], metric="valid_loss")
    curve = found.runs["constant"][0]["valid_loss"]
    assert curve.updates.tolist() == [2, 4, 6, 8, 10, 12]
    target = float(curve.values[3])
    again = learn.compare(3, 0.05, ["constant"], seeds=[0], metric="valid_loss", target=target)
    assert all(curve.values[:3] > target)
    assert again.updates_to_target("constant") == {0: 8}
    assert again.epochs_to_target("constant") == {0: 2}


# Killed and resumed ---------------------------------------------------------------------------


def test_a_signal_in_it_ends_the_fit_behind_it_and_resumes_in_the_same_bits(tmp_path):
    def run(*cbs, **options):
        learn = dropout_learner()
        learn.fit(2, 0.1, cbs=[Validate("3 updates"), *cbs], **options)
        return trained(learn), validated_at(learn)

    def terminate(learn):
        if learn.between_batches and learn.n_updates == 6:
            signal.raise_signal(signal.SIGTERM)

    signalled = Checkpoint(tmp_path, "100 updates", on_signal=True)
    with pytest.raises(SystemExit) as ended:
        run(signalled, Callback(before_validate=terminate))
    assert ended.value.code == 75
    assert run(resume=tmp_path) == run()


@pytest.mark.slow
def test_it_resumes_with_the_same_record_after_every_update(tmp_path):
    def run(**options):
        learn = dropout_learner(cbs=[Recorder(train_metrics=True)])
        learn.dls = DataLoaders(learn.dls.train, {"first": learn.dls.valid, "draws": Draws()})
        own = [
            Validate("0.3 epochs", batches=1),
            ReduceLROnPlateau(factor=0.5),
            EarlyStopping(patience=9),
        ]
        learn.fit(2.5, 0.1, cbs=[*own, *options.pop("cbs", ())], **options)
        history = learn.recorder.history
        series = {n: (s.updates.tolist(), s.values.tobytes()) for n, s in history.items()}
        return trained(learn), series, learn.n_updates, learn.stop_reason

    torch.manual_seed(7)
    expected = run(cbs=[Checkpoint(tmp_path, "1 update", keep=99)])
    files = sorted(tmp_path.iterdir())
    assert len(files) == expected[2] == 13
    assert expected[1]["valid_loss"][0] == [
        2,
        3,
        5,
        6,
        8,
        9,
        11,
        12,
        13,
    ]
    for file in files:
        torch.manual_seed(99)
        found = run(resume=file)
        assert found[1:] == expected[1:], file.name
        assert found[0] == expected[0], file.name
