import io
from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from scripted import same, weights
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from torch.utils._python_dispatch import TorchDispatchMode

from onecycle import (
    EMA,
    SWA,
    Callback,
    CancelEpoch,
    CancelFit,
    CancelValid,
    Learner,
    MixedPrecision,
    Recorder,
    SaveModel,
    TensorLoader,
)
from onecycle.callbacks.averaging import WeightAverage
from onecycle.testing import toy_learner


class Recording(Callback):
    """Keeps the weights after every update, and those that each validation saw."""

    def __init__(self) -> None:
        self.updates: list[dict[str, Tensor]] = []
        self.validated: list[dict[str, Tensor]] = []

    def after_step(self, learn: Learner) -> None:
        self.updates.append(weights(learn))

    def after_batch(self, learn: Learner) -> None:
        if not learn.training and learn.iter == 0:
            self.validated.append(weights(learn))


def fit(learn: Learner, n_epoch: int, cbs: list[Callback]) -> None:
    """Fit with the same dropout each time."""
    torch.manual_seed(2)
    learn.fit(n_epoch, lr=0.05, cbs=cbs)


class Endless:
    """A loader without a length and without an end."""

    def __iter__(self):
        while True:
            yield torch.randn(8, 4), torch.randn(8, 1)


class DeliberateError(Exception):
    pass


def normed_learner() -> Learner:
    """Make a learner in float64 whose model has batch norm and dropout."""
    torch.manual_seed(1)
    layers = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.2), nn.Linear(6, 1)
    rows = [(torch.randn(8, 4).double(), torch.randn(8, 1).double()) for _ in range(5)]
    model = nn.Sequential(*layers).double()
    learn = Learner((rows, rows), model, nn.functional.mse_loss, device="cpu", seed=0, check=False)
    learn.cbs = [cb for cb in learn.cbs if isinstance(cb, Recorder)]
    return learn


def ema_by_hand(updates: list[dict[str, Tensor]], decay: float) -> dict[str, Tensor]:
    average = dict(updates[0])
    for t, new in enumerate(updates[1:], start=2):
        d = min(decay, t / (t + 9))
        for name in average:
            if "num_batches" not in name:
                average[name] = d * average[name] + (1 - d) * new[name]
    return average | {n: v for n, v in updates[-1].items() if "num_batches" in n}


def close(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        torch.allclose(left[name].double(), right[name].double(), rtol=1e-12, atol=1e-14)
        for name in left
    )


# EMA: what is averaged


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.9, 0.999])
def test_ema_is_the_average_that_a_loop_by_hand_makes_of_the_weights_of_each_update(decay):
    learn, record = normed_learner(), Recording()
    learn.fit(4, lr=0.05, cbs=[record, EMA(decay)])
    assert len(record.updates) == 20
    assert close(weights(learn), ema_by_hand(record.updates, decay))
    assert close(weights(learn), record.updates[-1]) == (decay == 0.0)


def test_validation_sees_the_average_and_training_goes_on_from_the_trained_weights():
    plain, averaged = normed_learner(), normed_learner()
    record, with_ema = Recording(), Recording()
    fit(plain, 3, cbs=[record])
    fit(averaged, 3, cbs=[with_ema, EMA(0.9)])
    assert all(map(same, record.updates, with_ema.updates))  # bit for bit
    for epoch, seen in enumerate(with_ema.validated):
        assert close(seen, ema_by_hand(record.updates[: 5 * (epoch + 1)], 0.9))
        assert not close(seen, record.validated[epoch])


def test_the_last_recorded_validation_is_that_of_the_model_the_fit_leaves():
    learn = normed_learner()
    learn.fit(2, lr=0.05, cbs=[EMA(0.9)])
    assert learn.recorder.history["valid_loss"].values[-1] == learn.validate()["valid_loss"]


def test_each_fit_begins_a_new_average():
    learn, ema, record = normed_learner(), EMA(0.9), Recording()
    learn.fit(2, lr=0.05, cbs=[ema])
    learn.fit(1, lr=0.05, cbs=[ema, record])
    assert close(weights(learn), ema_by_hand(record.updates, 0.9))


def test_parameters_stay_the_same_objects_in_the_same_memory():
    learn = normed_learner()
    before = [(id(t), t.data_ptr()) for t in learn.model.state_dict(keep_vars=True).values()]
    learn.fit(2, lr=0.05, cbs=[EMA()])
    after = [(id(t), t.data_ptr()) for t in learn.model.state_dict(keep_vars=True).values()]
    assert before == after


def test_a_mask_with_infinities_stays_as_it_is():
    learn = normed_learner()
    mask = torch.full((3,), -torch.inf)
    learn.model.register_buffer("mask", mask.clone())
    learn.fit(1, lr=0.05, cbs=[EMA()])
    assert torch.equal(learn.model.mask, mask)


def test_a_step_that_half_precision_would_round_away_is_averaged():
    model, average = nn.Linear(1, 1, bias=False).bfloat16(), WeightAverage()
    nn.init.constant_(model.weight, 1.0)
    average.update(model, 1.0)
    nn.init.constant_(model.weight, 2.0)
    for _ in range(1000):
        average.update(model, 0.001)
    (value,) = average.values.values()
    assert value.item() == pytest.approx(2 - 0.999**1000, abs=1e-4)
    # Negative control: in bfloat16 itself nothing moves.
    assert torch.lerp(torch.ones(1).bfloat16(), torch.tensor([2.0]).bfloat16(), 0.001) == 1


class Operations(TorchDispatchMode):
    """Lists the operations that torch runs, which tells what would make the host wait."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name().removeprefix("aten::").split(".")[0])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("average", [EMA(0.9), SWA(0.0)], ids=["EMA", "SWA"])
def test_after_the_first_update_an_update_is_one_operation_that_reads_nothing(average):
    learn, names = normed_learner(), []

    def watched(learn: Learner) -> None:
        with Operations() as operations:
            type(average).after_step(average, learn)
        names.append([name for name in operations.names if name not in ("detach", "alias")])

    average.after_step = watched
    learn.fit(1, cbs=[average])
    assert names[1:] == [["_foreach_lerp_"]] * 4


# EMA: whatever happens in validation, the weights come back


def at_first_valid_batch(error: Exception) -> Callback:
    def fail(learn: Learner) -> None:
        if not learn.training and learn.epoch == 1:
            raise error

    return Callback(after_pred=fail)


@pytest.mark.parametrize("cancel", [CancelValid, CancelEpoch])
def test_after_a_cancel_in_validation_training_goes_on_from_the_trained_weights(cancel):
    plain, averaged = normed_learner(), normed_learner()
    record, with_ema = Recording(), Recording()
    fit(plain, 3, cbs=[record])
    fit(averaged, 3, cbs=[with_ema, EMA(0.9), at_first_valid_batch(cancel("enough"))])
    assert all(map(same, record.updates, with_ema.updates))
    assert close(weights(averaged), ema_by_hand(record.updates, 0.9))


@pytest.mark.parametrize("error", [DeliberateError(), KeyboardInterrupt()])
def test_after_an_error_in_validation_the_model_has_the_trained_weights(error):
    learn, record = normed_learner(), Recording()
    with pytest.raises(type(error)):
        learn.fit(3, lr=0.05, cbs=[record, EMA(0.9), at_first_valid_batch(error)])
    assert len(record.updates) == 10
    assert same(weights(learn), record.updates[-1])


@pytest.mark.parametrize("event", ["after_pred", "after_step"])
def test_a_cancelled_fit_leaves_the_average(event):
    def cancel(learn: Learner) -> None:
        if learn.n_updates == 10 and (event == "after_step" or not learn.training):
            raise CancelFit("enough")

    learn, record = normed_learner(), Recording()
    learn.fit(3, lr=0.05, cbs=[record, EMA(0.9), Callback(**{event: cancel})])
    assert close(weights(learn), ema_by_hand(record.updates, 0.9))


def test_a_fit_without_an_update_leaves_the_weights_and_says_so(caplog):
    def cancel(learn: Learner) -> None:
        raise CancelFit("at once")

    learn = normed_learner()
    before = weights(learn)
    learn.fit(1, cbs=[EMA(), Callback(before_epoch=cancel)])
    assert same(weights(learn), before)
    assert "EMA averaged no update" in caplog.text


# EMA: restart, and what is refused


def resumed(
    make: Callable[[], Callback], *, loaded: bool
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Fit two epochs, and its second one again by another learner: return both ends."""
    first, other, file = make(), make(), io.BytesIO()

    def save(learn: Learner) -> None:
        if learn.n_updates == 8:
            torch.save((learn.model.state_dict(), first.state_dict()), file)
            file.seek(0)

    whole = toy_learner(opt_func=torch.optim.SGD)  # without momentum it has no state to restore
    whole.fit(2, lr=0.01, cbs=[first, Callback(after_step=save)])
    model, state = torch.load(file, weights_only=True)

    def load(learn: Learner) -> None:
        learn.model.load_state_dict(model)
        if loaded:
            other.load_state_dict(state)

    rest = toy_learner(opt_func=torch.optim.SGD)
    rest.total_epochs = 1
    rest.fit(1, lr=0.01, cbs=[other, Callback(before_train=load)])
    return weights(whole), weights(rest)


@pytest.mark.parametrize("make", [lambda: EMA(0.9), lambda: SWA(0.0)], ids=["EMA", "SWA"])
def test_an_average_goes_on_after_a_restart_bit_for_bit(make):
    assert same(*resumed(make, loaded=True))
    assert not same(*resumed(make, loaded=False))  # negative control


def test_outside_a_fit_no_copy_of_the_weights_is_kept():
    ema = EMA()
    normed_learner().fit(1, cbs=[ema])
    assert ema.state_dict() == {"count": 0, "values": {}}


def test_the_average_of_another_model_is_refused():
    ema, state = EMA(), {"count": 3, "values": {"elsewhere": torch.zeros(1)}}
    load = Callback(before_train=lambda learn: ema.load_state_dict(state))
    with pytest.raises(ValueError, match="of another model: they differ in"):
        normed_learner().fit(1, cbs=[ema, load])


def test_two_averages_in_one_fit_are_refused():
    learn = normed_learner()
    with pytest.raises(ValueError, match="one average"):
        learn.fit(1, cbs=[EMA(), SWA()])
    assert learn.total_updates == 0


@pytest.mark.parametrize("decay", [-0.1, 1.0, 1.5, float("nan")])
def test_a_decay_out_of_range_is_refused(decay):
    with pytest.raises(ValueError, match="decay"):
        EMA(decay)


# What SaveModel keeps of it


AVERAGES = pytest.mark.parametrize(
    "make", [lambda: EMA(0.9), lambda: SWA(0.0), lambda: SWA(0.5)], ids=["EMA", "SWA", "late SWA"]
)


@AVERAGES
def test_the_best_file_validates_to_exactly_the_best_score(make, tmp_path):
    learn = normed_learner()
    fit(learn, 5, cbs=[make(), SaveModel(tmp_path / "best.pt")])
    best = learn.recorder.history["valid_loss"].values.min()
    assert learn.validate()["valid_loss"] == best  # restored
    fresh = normed_learner()
    fresh.load(tmp_path / "best.pt", with_opt=False)
    assert fresh.validate()["valid_loss"] == best


@AVERAGES
def test_the_file_of_each_epoch_validates_to_exactly_its_score(make, tmp_path):
    learn, record = normed_learner(), Recording()
    fit(learn, 4, cbs=[record, make(), SaveModel(tmp_path / "{epoch}.pt", every=1)])
    scores = learn.recorder.history["valid_loss"].values.tolist()
    fresh, saved = normed_learner(), []
    for epoch in range(1, 5):
        fresh.load(tmp_path / f"{epoch}.pt", with_opt=False)
        saved.append(fresh.validate()["valid_loss"])
    assert saved == scores
    # Negative control: the weights in training score otherwise.
    fresh.model.load_state_dict(record.updates[-1])
    assert fresh.validate()["valid_loss"] != scores[-1]


@AVERAGES
def test_saving_leaves_training_undisturbed(make, tmp_path):
    plain, saving = normed_learner(), normed_learner()
    record, with_save = Recording(), Recording()
    fit(plain, 3, cbs=[record])
    fit(saving, 3, cbs=[make(), with_save, SaveModel(tmp_path / "{epoch}.pt", every=1)])
    assert all(map(same, record.updates, with_save.updates))


@AVERAGES
def test_the_trained_weights_come_back_where_the_file_cannot_be_written(
    make, tmp_path, monkeypatch, caplog
):
    def full(*_: object) -> None:
        raise OSError("no space left")

    plain, saving = normed_learner(), normed_learner()
    record, with_save = Recording(), Recording()
    fit(plain, 3, cbs=[record])
    monkeypatch.setattr(torch, "save", full)
    fit(saving, 3, cbs=[make(), with_save, SaveModel(tmp_path / "best.pt")])
    assert all(map(same, record.updates, with_save.updates))
    assert "the fit goes on" in caplog.text


def test_without_validation_the_average_is_saved_with_statistics_of_its_own(tmp_path):
    learn, record = normed_learner(), Recording()
    learn.dls.valid = None
    fit(learn, 2, cbs=[record, SWA(0.0), SaveModel(tmp_path / "{epoch}.pt", every=1)])
    expected = swa_by_hand(learn, record.updates[:5], 10, 0.0)
    saved = torch.load(tmp_path / "1.pt", weights_only=True)["model"]
    assert close(without_counts(saved), without_counts(expected))


def test_the_average_that_validation_put_in_is_left_in():
    learn, ema, inside = normed_learner(), EMA(0.9), []

    def save(learn: Learner) -> None:
        before = weights(learn)
        with ema.as_validated(learn):
            inside.append(same(weights(learn), before))
        inside.append(same(weights(learn), before))

    fit(learn, 2, cbs=[ema, Callback(before_validate=save)])
    assert inside == [True] * 4


# SWA


def swa_by_hand(
    learn: Learner, updates: list[dict[str, Tensor]], n_planned: int, start: float
) -> dict[str, Tensor]:
    """Average the parameters, and let torch take the statistics of batch norm."""
    chosen = [w for k, w in enumerate(updates) if k / (n_planned - 1) >= start]
    model = deepcopy(learn.model)
    mean = {name: torch.stack([w[name].double() for w in chosen]).mean(0) for name in chosen[0]}
    model.load_state_dict(mean)
    update_bn(learn.dls.train, model)
    return model.state_dict()


def without_counts(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if "num_batches" not in name}


@pytest.mark.parametrize("start", [0.0, 0.5, 0.75, 1.0])
def test_swa_is_the_plain_mean_with_the_statistics_that_torch_takes(start):
    learn, record = normed_learner(), Recording()
    learn.fit(4, lr=0.05, cbs=[record, SWA(start)])
    expected = swa_by_hand(learn, record.updates, 20, start)
    assert close(without_counts(weights(learn)), without_counts(expected))
    # Negative control: the statistics are not those that training or averaging would leave.
    assert not torch.allclose(
        weights(learn)["1.running_mean"], record.updates[-1]["1.running_mean"]
    )


def test_swa_averages_the_last_quarter_by_default():
    counts: list[int] = []
    swa = SWA()
    count = Callback(after_step=lambda learn: counts.append(swa.state_dict()["count"]))
    normed_learner().fit(4, cbs=[swa, count])
    assert counts == [0] * 15 + [1, 2, 3, 4, 5]


def test_validation_sees_the_mean_from_the_start_on_and_training_is_undisturbed():
    plain, averaged = normed_learner(), normed_learner()
    record, with_swa = Recording(), Recording()
    fit(plain, 4, cbs=[record])
    fit(averaged, 4, cbs=[with_swa, SWA(0.5)])
    assert all(map(same, record.updates, with_swa.updates))  # dropout's random numbers too
    assert all(map(same, record.validated[:2], with_swa.validated[:2]))
    for epochs in (3, 4):
        expected = swa_by_hand(plain, record.updates[: 5 * epochs], 20, 0.5)
        seen = with_swa.validated[epochs - 1]
        assert close(without_counts(seen), without_counts(expected))


def test_the_loader_and_the_generators_are_as_without_swa():
    ends = []
    for cbs in ([], [SWA(0.0)]):
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 1))
        loader = toy_learner().dls.train  # shuffles
        learn = Learner((loader, None), model, nn.functional.mse_loss, device="cpu", seed=0)
        record = Recording()
        with learn.no_bar():
            learn.fit(3, lr=0.05, cbs=[record, *cbs])
        ends.append((record.updates, torch.get_rng_state(), learn.total_epochs))
    assert all(map(same, ends[0][0], ends[1][0]))
    assert torch.equal(ends[0][1], ends[1][1])
    assert ends[0][2] == ends[1][2] == 3


def test_momentum_and_mode_of_batch_norm_are_put_back():
    learn = normed_learner()
    modes = [module.training for module in learn.model.modules()]
    modes_after: list[list[bool]] = []
    look = Callback(
        after_fit=lambda learn: modes_after.append([m.training for m in learn.model.modules()])
    )
    learn.fit(2, cbs=[SWA(0.0), look])
    assert learn.model[1].momentum == 0.1
    assert modes_after == [[False] * len(modes)]  # as the validation pass left them


@pytest.mark.parametrize("limits", [{"steps_per_epoch": 3}, {"max_updates": 6}])
def test_statistics_of_a_loader_without_an_end_are_taken_over_an_epoch_of_it(limits):
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 1))
    learn = Learner((Endless(), None), model, nn.functional.mse_loss, device="cpu", seed=0)
    n_epoch = 2 if "steps_per_epoch" in limits else None
    with learn.no_bar():
        learn.fit(n_epoch, cbs=[SWA(0.5)], **limits)
    assert learn.total_updates == 6
    assert model[1].num_batches_tracked == next(iter(limits.values()))


def test_after_an_error_in_the_statistics_pass_the_model_has_the_trained_weights():
    def fail(*_: object) -> None:
        if not torch.is_grad_enabled():
            raise DeliberateError

    learn, record = normed_learner(), Recording()
    learn.model[1].register_forward_hook(fail)
    with pytest.raises(DeliberateError):
        learn.fit(1, lr=0.05, cbs=[record, SWA(0.0)])
    assert same(weights(learn), record.updates[-1])
    assert learn.model[1].momentum == 0.1


def test_swa_refuses_a_fit_of_unknown_length():
    learn = Learner((Endless(), None), nn.Linear(4, 1), nn.functional.mse_loss, device="cpu")
    with pytest.raises(ValueError, match="steps_per_epoch"), learn.no_bar():
        learn.fit(1, cbs=[SWA()])
    assert learn.total_updates == 0


def test_the_statistics_are_taken_in_the_precision_of_the_fit():
    dtypes: list[torch.dtype] = []

    def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if module.momentum is None:  # as it is in the statistics pass alone
            dtypes.append(inputs[0].dtype)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 1))
    model[1].register_forward_pre_hook(look)
    learn = Learner((toy_learner().dls.train, None), model, nn.functional.mse_loss, device="cpu")
    with learn.no_bar():
        learn.fit(1, lr=0.05, cbs=[MixedPrecision("bf16"), SWA()])
    assert dtypes == [torch.bfloat16] * 8


@pytest.mark.parametrize("start", [-0.1, 1.1, float("nan")])
def test_a_start_out_of_range_is_refused(start):
    with pytest.raises(ValueError, match="start"):
        SWA(start)


@pytest.mark.parametrize("make", [lambda: EMA(0.98), SWA], ids=["EMA", "SWA"])
def test_at_a_constant_rate_the_average_is_nearer_to_the_solution(make):
    generator = torch.Generator().manual_seed(0)
    x, noise = torch.randn(256, 4, generator=generator), torch.randn(256, 1, generator=generator)
    y = x.sum(1, keepdim=True) + noise
    rows = TensorLoader(x, y, batch_size=4, shuffle=True)
    solution = torch.linalg.lstsq(x, y).solution

    def distance(*cbs: Callback) -> float:
        torch.manual_seed(0)
        model, sgd = nn.Linear(4, 1, bias=False), torch.optim.SGD
        learn = Learner((rows, None), model, nn.functional.mse_loss, sgd, device="cpu", seed=0)
        with learn.no_bar():
            learn.fit(8, lr=0.05, cbs=cbs)
        return float((model.weight.detach().T - solution).norm())

    plain, averaged = distance(), distance(make())
    assert averaged < plain / 2
