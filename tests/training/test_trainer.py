import contextlib
from collections import OrderedDict, namedtuple
from functools import partial
from typing import Any

import pytest
import torch
from learner_state import LearnerState, trained
from plain_learner import Net, X, Y, batches, learner, plain
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

from onecycle import (
    Callback,
    CancelBatch,
    CancelFit,
    CancelValid,
    Learner,
    MissingCallbackError,
    OnecycleError,
    Progress,
    Recorder,
    Stage,
    TorchScheduler,
    mse,
)
from onecycle.arguments import Default
from onecycle.core.events import EVENTS
from onecycle.testing import toy_learner

Pair = namedtuple("Pair", "mean spread")


def prepare(**events: Any) -> Callback:
    callback = Callback(**events)
    callback.stage = Stage.PREPARE
    return callback


def bare_preds(model: nn.Module) -> Tensor:
    model.eval()
    with torch.no_grad():
        return torch.cat([model(xb) for xb, _ in batches()])


INFERENCE = {
    "validate": lambda learn: learn.validate(),
    "validate on the training loader": lambda learn: learn.validate(learn.dls.train),
    "get_preds": lambda learn: learn.get_preds(),
    "get_preds on the training loader": lambda learn: learn.get_preds(learn.dls.train),
    "get_preds in inference mode": lambda learn: learn.get_preds(inference_mode=True),
    "predict": lambda learn: learn.predict(X[0]),
}


class TestInferenceLeavesNothing:
    @pytest.mark.parametrize("call", INFERENCE.values(), ids=INFERENCE)
    @pytest.mark.parametrize("fitted", [False, True], ids=["new", "fitted"])
    def test_every_object_and_bit_is_as_before(self, fitted: bool, call: Any) -> None:
        learn = learner(metrics=[mse])
        if fitted:
            learn.fit(1)
        learn.model.train()
        learn.model.layers[1].eval()
        learn.model.layers[0].weight.grad = torch.ones(8, 4)
        before = LearnerState(learn)
        call(learn)
        assert before.changes(LearnerState(learn)) == []

    @pytest.mark.parametrize("call", INFERENCE.values(), ids=INFERENCE)
    def test_also_when_the_model_raises(self, call: Any) -> None:
        class Failing(Net):
            def forward(self, x: Tensor) -> Tensor:
                torch.rand(1)
                raise KeyboardInterrupt

        learn = learner(Failing())
        before = LearnerState(learn)
        with pytest.raises(KeyboardInterrupt):
            call(learn)
        assert before.changes(LearnerState(learn)) == []

    @pytest.mark.parametrize("call", INFERENCE.values(), ids=INFERENCE)
    def test_generators_of_samplers_stay(self, call: Any) -> None:
        generator = torch.Generator().manual_seed(1)
        sampler = WeightedRandomSampler([1.0] * 44, 44, generator=generator)
        loader = DataLoader(TensorDataset(X, Y), batch_size=8, sampler=sampler)
        learn = learner(dls=(loader, loader))
        before = LearnerState(learn)
        call(learn)
        assert before.changes(LearnerState(learn)) == []

    @pytest.mark.parametrize("call", INFERENCE.values(), ids=INFERENCE)
    def test_a_fit_from_whose_callback_it_is_called_ends_in_the_same_bits(self, call: Any) -> None:
        def infer(learn: Any) -> None:
            before = LearnerState(learn)
            call(learn)
            assert before.changes(LearnerState(learn)) == []

        events = ("before_fit", "after_pred", "after_step", "after_epoch")
        bare = learner(metrics=[mse])
        bare.fit_one_cycle(1)
        expected = trained(bare)
        tested = learner(metrics=[mse])
        tested.fit_one_cycle(1, cbs=[Callback(**dict.fromkeys(events, infer))])
        assert trained(tested) == expected

    def test_persistent_workers_in_the_middle_of_a_pass_go_on(self) -> None:
        def make() -> Learner:
            loader = DataLoader(
                TensorDataset(X, Y), 8, shuffle=True, num_workers=1, persistent_workers=True
            )
            return learner(dls=(loader, None))

        def infer(learn: Any) -> None:
            if learn.n_updates == 2:
                learn.validate(learn.dls.train)

        bare = make()
        bare.fit(1)
        expected = trained(bare)
        tested = make()
        tested.fit(1, cbs=[Callback(after_step=infer)])
        assert trained(tested) == expected

    def test_it_fires_no_event_but_those_that_prepare_batches(self) -> None:
        heard: list[tuple[str, str]] = []
        cbs = []
        for stage in Stage:
            events = {
                event: lambda learn, key=(stage.name, event): heard.append(key) for event in EVENTS
            }
            callback = Callback(**events)
            callback.stage = stage
            cbs.append(callback)
        learn = learner(cbs=cbs)
        learn.get_preds([batches()[0]])
        assert [event for _, event in heard] == ["before_batch", "after_pred", "after_batch"]
        heard.clear()
        learn.validate([batches()[0]])
        assert [event for _, event in heard] == [
            "before_batch",
            "after_pred",
            "after_loss",
            "after_batch",
        ]
        assert {stage for stage, _ in heard} == {"PREPARE"}
        assert len(learn.recorder.history) == 0


class TestValidate:
    def test_weighs_every_sample_alike_also_in_a_smaller_last_batch(self) -> None:
        learn = learner(metrics=[mse])
        learn.fit(1)
        expected = float(mse_loss(bare_preds(learn.model), Y))
        assert learn.validate() == pytest.approx({"valid_loss": expected, "mse": expected})

    def test_gives_what_the_fit_recorded_and_gives_it_again(self) -> None:
        learn = learner(metrics=[mse])
        learn.fit(1)
        recorded = {name: learn.recorder.history[name].values[-1] for name in ("valid_loss", "mse")}
        assert learn.validate() == recorded
        assert learn.validate() == recorded

    def test_takes_any_iterable_of_batches(self) -> None:
        learn = learner(dls=(batches(), None))
        expected = float(mse_loss(bare_preds(learn.model)[:8], Y[:8]))
        found = learn.validate(batch for batch in batches()[:1])
        assert found == pytest.approx({"valid_loss": expected})

    def test_needs_a_loader(self) -> None:
        learn = learner(dls=(batches(), None))
        for call in (learn.validate, learn.get_preds):
            with pytest.raises(ValueError, match="no validation loader: pass one as dl"):
                call()

    def test_refuses_an_empty_loader(self) -> None:
        with pytest.raises(ValueError, match="it is empty"):
            learner().validate([])

    def test_uses_an_object_with_reset_update_and_compute(self) -> None:
        class Largest:
            """The largest absolute error: no mean of batches."""

            __name__ = "largest"

            def __init__(self) -> None:
                self.values: list[Tensor] = []

            def reset(self) -> None:
                self.values = []

            def update(self, pred: Tensor, yb: Tensor) -> None:
                self.values.append((pred - yb).abs().max())

            def compute(self) -> Tensor:
                return torch.stack(self.values).max()

        metric = Largest()
        learn = learner(metrics=[metric])
        metric.values = [torch.tensor(1e9)]  # as in the middle of a pass of its own
        expected = float((bare_preds(learn.model) - Y).abs().max())
        found = learn.validate()
        assert [value for name, value in found.items() if name != "valid_loss"] == [expected]
        assert metric.values == [torch.tensor(1e9)]

    def test_leaves_out_a_batch_that_is_cancelled(self) -> None:
        def cancel(learn: Any) -> None:
            if learn.iter > 0:
                raise CancelBatch

        learn = learner(cbs=[prepare(after_pred=cancel)])
        expected = float(mse_loss(bare_preds(learn.model)[:8], Y[:8]))
        assert learn.validate() == pytest.approx({"valid_loss": expected})
        assert len(learn.get_preds().preds) == 8

    def test_ends_at_a_cancelled_pass(self) -> None:
        def cancel(learn: Any) -> None:
            if learn.iter == 2:
                raise CancelValid("enough")

        learn = learner(cbs=[prepare(before_batch=cancel)])
        assert torch.equal(learn.get_preds().preds, bare_preds(learn.model)[:16])
        expected = float(mse_loss(bare_preds(learn.model)[:16], Y[:16]))
        assert learn.validate() == pytest.approx({"valid_loss": expected})

    def test_refuses_a_cancel_of_what_is_not_running(self) -> None:
        def cancel(learn: Any) -> None:
            raise CancelFit("stop")

        with pytest.raises(OnecycleError, match="no fit is running that it could end"):
            learner(cbs=[prepare(before_batch=cancel)]).validate()


class Several(nn.Module):
    """Takes two inputs, and gives its results in a container."""

    def __init__(self, container: Any) -> None:
        super().__init__()
        self.layer, self.container = nn.Linear(4, 1), container

    def forward(self, a: Tensor, b: Tensor) -> Any:
        return self.container(self.layer(a), self.layer(b))


class TestPredictions:
    @pytest.mark.parametrize("inference_mode", [False, True])
    def test_equal_a_bare_loop(self, inference_mode: bool) -> None:
        learn = learner()
        learn.fit(1)
        found = learn.get_preds(inference_mode=inference_mode)
        assert torch.equal(found.preds, bare_preds(learn.model))
        assert torch.equal(found.targets, Y)
        assert not found.preds.requires_grad
        assert not found.preds.is_inference()  # what is returned may take part in training

    def test_of_one_sample_equal_those_of_a_batch_of_one(self) -> None:
        learn = learner()
        learn.fit(1)
        learn.model.eval()
        with torch.no_grad():
            expected = learn.model(X[:1])[0]
        assert torch.equal(learn.predict(X[0]), expected)

    @pytest.mark.parametrize(
        "container",
        [
            lambda a, b: (a, b),
            lambda a, b: [a, b],
            Pair,
            lambda a, b: {"a": a, "b": b},
            lambda a, b: OrderedDict(a=a, b=b),
        ],
        ids=["tuple", "list", "named tuple", "dict", "ordered dict"],
    )
    def test_keep_the_nesting_of_the_output(self, container: Any) -> None:
        model = Several(container)
        data = [(X[i : i + 8], 2 * X[i : i + 8], Y[i : i + 8]) for i in range(0, 44, 8)]
        learn = learner(model, dls=(data, data), loss_func=lambda pred, yb: mse_loss(Y, Y))
        found = learn.get_preds()
        one = learn.predict((X[0], 2 * X[0]))
        with torch.no_grad():
            expected = container(
                *(torch.cat([model.layer(k * d[0]) for d in data]) for k in (1, 2))
            )
        assert torch.equal(found.targets, Y)
        for values, row in ((found.preds, slice(None)), (one, 0)):
            assert isinstance(values, dict if isinstance(expected, dict) else type(expected))
            pairs = zip(
                values.values() if isinstance(values, dict) else values,
                expected.values() if isinstance(expected, dict) else expected,
                strict=True,
            )
            for value, part in pairs:
                torch.testing.assert_close(value, part[row])

    def test_of_a_model_that_takes_keywords(self) -> None:
        model = Several(lambda a, b: a + b)
        data = [{"a": X[:8], "b": X[8:16]}, {"a": X[16:20], "b": X[20:24]}]
        learn = learner(model, dls=(data, data), loss_func=lambda pred, batch: pred.mean())
        found = learn.get_preds()
        with torch.no_grad():
            expected = torch.cat([model(**batch) for batch in data])
        assert torch.equal(found.preds, expected)
        assert torch.equal(found.targets["a"], torch.cat([X[:8], X[16:20]]))
        one = learn.predict({"a": X[0], "b": X[8]})
        torch.testing.assert_close(one, expected[0])

    def test_split_a_longer_batch_where_they_are_told(self) -> None:
        data = [(X, Y, 2 * Y)]
        learn = learner(
            dls=(data, data), n_inp=1, loss_func=lambda pred, y, z: mse_loss(pred, y + z)
        )
        targets = learn.get_preds().targets
        assert torch.equal(targets[0], Y)
        assert torch.equal(targets[1], 2 * Y)
        expected = float(mse_loss(learn.get_preds().preds, 3 * Y))
        assert learn.validate() == pytest.approx({"valid_loss": expected})
        assert learn.predict(X[0]).shape == (1,)
        assert learn.n_inp == 1

    def test_without_targets(self) -> None:
        learn = learner()
        found = learn.get_preds([(X[:8],), (X[8:16],)])
        torch.testing.assert_close(found.preds, bare_preds(learn.model)[:16])
        assert found.targets is None

    def test_compute_no_loss(self) -> None:
        def loss_func(pred: Tensor, yb: Tensor) -> Tensor:
            raise AssertionError

        learn = learner(loss_func=loss_func)
        assert learn.get_preds().preds.shape == (44, 1)

    def test_go_through_the_callbacks_that_prepare(self) -> None:
        def double(learn: Any) -> None:
            learn.xb = 2 * learn.xb

        learn = learner(cbs=[prepare(before_batch=double)])
        expected = bare_preds(learn.model.requires_grad_(False))
        assert not torch.equal(learn.get_preds().preds, expected)
        learn.model.eval()
        torch.testing.assert_close(learn.get_preds().preds, learn.model(2 * X))

    def test_let_a_model_that_caches_tensors_train_on(self) -> None:
        class Caching(nn.Linear):
            cached: Tensor | None = None

            def forward(self, x: Tensor) -> Tensor:
                if self.cached is None:
                    self.cached = x.std()
                return super().forward(x) * self.cached

        learn = learner(Caching(4, 1))
        learn.get_preds()
        learn.fit(1)
        assert learn.total_updates == 6
        learn = learner(Caching(4, 1))
        learn.get_preds(inference_mode=True)  # the control: hence no_grad is the default
        with pytest.raises(RuntimeError, match="Inference tensors"):
            learn.fit(1)


class TestToggling:
    def test_added_callbacks_are_there_in_the_block_only(self) -> None:
        learn, added = learner(), Callback()
        before = list(learn.cbs)
        with pytest.raises(KeyError), learn.added_cbs([added]):  # noqa: PT012
            assert learn.cbs == [*before, added]
            raise KeyError
        assert learn.cbs == before

    def test_removed_callbacks_are_gone_in_the_block_only(self) -> None:
        one, other = Callback(), Callback()
        learn = learner(cbs=[one, other])
        before = list(learn.cbs)
        with pytest.raises(KeyError), learn.removed_cbs(one, Recorder):  # noqa: PT012
            assert one not in learn.cbs
            assert other in learn.cbs
            with pytest.raises(MissingCallbackError, match="no Recorder now"):
                _ = learn.recorder
            raise KeyError
        assert learn.cbs == before
        assert isinstance(learn.recorder, Recorder)

    def test_no_bar_takes_the_progress_away(self) -> None:
        learn = learner()
        assert any(isinstance(cb, Progress) for cb in learn.cbs)
        with learn.no_bar():
            assert not any(isinstance(cb, Progress) for cb in learn.cbs)
        assert any(isinstance(cb, Progress) for cb in learn.cbs)

    def test_a_fit_without_recorder_trains_to_the_same_weights(self) -> None:
        bare = learner()
        bare.fit(1)
        other = learner()
        with other.removed_cbs(Recorder, Progress):
            other.fit(1)
        assert len(other.recorder.history) == 0
        assert plain(other.model.state_dict()) == plain(bare.model.state_dict())

    def test_the_drawn_loop_names_callbacks_at_their_events(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        class Look(Callback):
            during = "valid"

            def after_loss(self, learn: Any) -> None: ...

            def cleanup_fit(self, learn: Any) -> None: ...

        learn = toy_learner(cbs=(Look(),))
        learn.show_training_loop()
        lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
        losses = [line for line in lines if line.startswith("fire after_loss")]
        assert losses == ["fire after_loss", "fire after_loss: Look"]
        assert "fire cleanup_fit: Look, Recorder" in lines
        assert "fire before_validate: Recorder" in lines


class TestConstruction:
    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"model": lambda x: x}, TypeError, r"model must be a torch\.nn\.Module"),
            ({"model": nn.ReLU()}, ValueError, "has no parameters to train"),
            ({"loss_func": nn.MSELoss}, TypeError, "write it with parentheses"),
            ({"loss_func": "mse"}, TypeError, "loss_func must be called with"),
            ({"cbs": [Recorder]}, TypeError, "write it with parentheses"),
            ({"cbs": [print]}, TypeError, "cbs must be Callback objects"),
            ({"cbs": Recorder()}, TypeError, "must be a list of Callback objects"),
            ({"dls": [1, 2, 3]}, TypeError, r"\(train, valid\) pair"),
            ({"dls": (iter(()), None)}, TypeError, "only once"),
            ({"dls": ([], None)}, ValueError, "the training loader is empty"),
            ({"lr": -1.0}, ValueError, "lr must be finite and not negative"),
            ({"lr": [0.1, 0.2]}, ValueError, "one for each parameter group"),
            ({"opt": SGD([torch.ones(1)], 0.1)}, ValueError, "none of the model's parameters"),
        ],
    )
    def test_refuses_what_cannot_work(
        self, options: Any, error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            learner(**options)

    @pytest.mark.parametrize("cbs", [[Recorder], Callback(), [None]])
    def test_a_fit_refuses_what_is_no_callback(self, cbs: Any) -> None:
        learn = learner()
        for fit in (learn.fit, learn.fit_one_cycle):
            with pytest.raises(TypeError, match="cbs must be"):
                fit(1, cbs=cbs)
        assert learn.total_updates == 0

    def test_a_rate_of_none_is_refused_as_a_range_test_may_have_found_none(self) -> None:
        with pytest.raises(TypeError, match=r"must be a number.*a range test that found nothing"):
            learner(lr=None)

    def test_its_repr_tells_what_is_trained_and_how_far(self) -> None:
        learn = toy_learner(n_batches=4)
        learn.fit(1)
        assert repr(learn) == "Learner(Sequential, AdamW, loss_func=mse_loss: 4 updates done)"

    def test_a_given_optimizer_is_used_as_it_is(self) -> None:
        model = nn.Linear(4, 1)
        opt = SGD(model.parameters(), lr=0.3)
        learn = learner(model, opt=opt, lr=Default.OWN)
        assert learn.opt is opt
        assert learn.lr == [0.3]
        with pytest.raises(ValueError, match="used as it is"):
            learner(model, opt=opt, wd=0.1)

    def test_own_recorder_or_progress_take_the_place_of_the_defaults(self) -> None:
        recorder = Recorder()
        learn = learner(cbs=[recorder])
        assert learn.recorder is recorder
        assert sum(isinstance(cb, Recorder) for cb in learn.cbs) == 1

    def test_without_a_seed_torch_draws_one(self) -> None:
        assert learner(seed=None).seed == learner(seed=None).seed
        torch.manual_seed(1)
        assert Learner((batches(), None), nn.Linear(4, 1)).seed != learner(seed=None).seed


# The momentum of the next fit


def stopped(update):
    def stop(learn):
        if learn.n_updates == update:
            raise KeyboardInterrupt

    return Callback(after_step=stop)


@pytest.mark.parametrize("built", [0.9, 0.0])
@pytest.mark.parametrize("at", [3, 99])
def test_after_a_cycle_a_plain_fit_has_the_momentum_that_the_optimizer_was_built_with(built, at):
    learn = toy_learner(n_batches=8, opt_func=partial(SGD, momentum=built))
    for _ in range(2):
        with contextlib.suppress(KeyboardInterrupt):
            learn.fit_one_cycle(1, 0.01, moms=(0.8, 0.7, 0.75), cbs=[stopped(at)])
    assert learn.groups.get("momentum") != [built]
    learn.fit(1, 0.01)
    assert learn.recorder.history["momentum"].values[-8:].tolist() == [built] * 8


def test_after_a_scheduler_of_torch_too(caplog):
    learn = toy_learner(n_batches=8, opt_func=partial(SGD, momentum=0.9))

    def cycle(opt):
        return torch.optim.lr_scheduler.OneCycleLR(opt, 0.01, total_steps=8)

    learn.fit(1, cbs=[TorchScheduler(cycle)])
    assert learn.groups.get("momentum") != [0.9]
    learn.fit(1, 0.01)
    assert learn.groups.get("momentum") == [0.9]


def test_momentum_that_is_set_by_hand_between_two_fits_is_kept():
    learn = toy_learner(n_batches=8, opt_func=partial(SGD, momentum=0.9))
    learn.fit_one_cycle(1, 0.01)
    learn.groups.set("momentum", 0.6)
    learn.fit(1, 0.01)
    learn.fit(1, 0.01)
    assert learn.groups.get("momentum") == [0.6]


def test_momentum_that_only_one_cycle_asked_for_is_not_cycled_by_the_next(caplog):
    learn = toy_learner(n_batches=8, opt_func=partial(SGD, momentum=0.0))
    learn.fit_one_cycle(1, 0.01, moms=(0.8, 0.7, 0.75))
    learn.fit_one_cycle(1, 0.01)
    assert learn.groups.get("momentum") == [0.0]
    assert "SGD has momentum 0: only the learning rate is cycled" in caplog.text
