import random
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from learner_state import LearnerState, trained
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.optim import SGD, AdamW
from torch.utils.data import DataLoader, Dataset, WeightedRandomSampler

from onecycle import Callback, CancelBatch, CancelStep, Learner, Recorder, Stage, TensorLoader, mse
from onecycle.checkpoints import snapshot
from onecycle.checkpoints.snapshot import Snapshot, preserved
from onecycle.core import restore
from onecycle.core.restore import RngState
from onecycle.testing import toy_learner


class Net(nn.Module):
    """Has everything that a forward pass in training can change."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3))
        self.frozen = nn.Linear(8, 8)
        self.head = nn.Linear(8, 1)
        self.register_buffer("last", torch.zeros(1).expand(3), persistent=False)
        self.calls = 0
        self.seen: list[float] = []

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
            self.seen.append(float(x[0, 0].detach()))
        noise = 1e-3 * (self.calls % 7)  # so that a counter put back wrongly is in the loss
        return self.head(torch.relu(self.frozen(self.body(x)))) + noise


class Jitter(Callback):
    """Takes part in range tests, with generators and state of its own."""

    stage = Stage.PREPARE
    during = "train"

    def __init__(self) -> None:
        self.torch = torch.Generator().manual_seed(1)
        self.numpy = np.random.default_rng(2)
        self.legacy = np.random.RandomState(3)
        self.python = random.Random(4)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=3)
        self.count = 0
        self.log: dict[str, Any] = {"batches": [], "mean": torch.zeros(4), "array": np.zeros(2)}

    def before_batch(self, learn: Any) -> None:
        self.count += 1
        self.log["batches"].append(self.count)
        self.log["mean"] += learn.xb.mean(0)
        self.log["array"] += 1
        draws = self.numpy.random() + self.legacy.rand() + self.python.random()
        globally = random.random() + np.random.rand()
        scale = 1 + 0.01 * (draws + globally)
        learn.xb = learn.xb * scale + 0.01 * torch.randn(learn.xb.shape, generator=self.torch)

    def after_loss(self, learn: Any) -> None:
        self.scaler.scale(learn.loss)
        self.scaler.update(8.0 + self.count)


class Noisy(Dataset[Any]):
    """Samples with noise of torch's generator: in a worker, of the worker's."""

    def __init__(self, n: int = 48) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(n, 4, generator=generator)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.x[i] + 0.1 * torch.randn(4), self.x[i].sum(0, keepdim=True)


def in_memory() -> Any:
    x = Noisy().x
    return TensorLoader(x, x.sum(1, keepdim=True), batch_size=8, shuffle=True)


def dataloader(**options: Any) -> Any:
    given = {"batch_size": 8, "shuffle": True, "generator": torch.Generator().manual_seed(5)}
    return DataLoader(Noisy(), **(given | options))


def weighted() -> Any:
    sampler = WeightedRandomSampler([1.0] * 48, 48, generator=torch.Generator().manual_seed(6))
    return DataLoader(Noisy(), batch_size=8, sampler=sampler)


def workers(*, persistent: bool) -> Any:
    return dataloader(num_workers=2, persistent_workers=persistent)


OPTIMIZERS = {"sgd": partial(SGD, momentum=0.9, weight_decay=0.01), "adamw": AdamW}
IN_PROCESS = {"in_memory": in_memory, "dataloader": dataloader, "weighted": weighted}


def learner(
    make_loader: Callable[[], Any] = in_memory, opt_func: Any = AdamW, *cbs: Callback
) -> Learner:
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    net = Net()
    for parameter in net.frozen.parameters():
        parameter.requires_grad_(False)
    net.eval()  # fits set all of it to training mode, tests must put it back
    return Learner(
        (make_loader(), make_loader()),
        net,
        mse_loss,
        opt_func,
        lr=[1e-3, 1e-2],
        metrics=[mse],
        cbs=[Jitter(), *cbs],
        wd=0.01,
        splitter=lambda model: [
            [*model.body.parameters(), *model.frozen.parameters()],
            list(model.head.parameters()),
        ],
        device="cpu",
        seed=0,
    )


def find(learn: Learner, num_it: int = 15, **options: Any) -> None:
    learn.lr_find(1e-4, 1.0, num_it, show_plot=False, **options)


def stop_at(update: int, error: type[BaseException], event: str = "after_step") -> Callback:
    def stop(learn: Any) -> None:
        if learn.n_updates == update and learn._run == "range_test":
            raise error("stop")

    callback = Callback(**{event: stop})
    callback.runs_in = frozenset(("range_test",))
    return callback


class TestARangeTestBeforeAFit:
    @pytest.mark.parametrize("make_loader", IN_PROCESS.values(), ids=IN_PROCESS)
    @pytest.mark.parametrize("opt_func", OPTIMIZERS.values(), ids=OPTIMIZERS)
    def test_changes_no_bit_of_the_fit(self, opt_func: Any, make_loader: Any) -> None:
        bare = learner(make_loader, opt_func)
        bare.fit_one_cycle(2)
        expected = trained(bare)
        tested = learner(make_loader, opt_func)
        find(tested)
        find(tested)
        tested.fit_one_cycle(2)
        assert trained(tested) == expected

    @pytest.mark.parametrize("persistent", [False, True])
    def test_changes_no_bit_of_a_fit_with_workers(self, persistent: bool) -> None:
        make_loader = partial(workers, persistent=persistent)
        bare = learner(make_loader)
        bare.fit(2)
        expected = trained(bare)
        tested = learner(make_loader)
        find(tested, 8)
        tested.fit(2)
        assert trained(tested) == expected

    @pytest.mark.parametrize("error", [KeyboardInterrupt, ArithmeticError])
    @pytest.mark.parametrize("update", [1, 3, 9])
    def test_changes_no_bit_when_it_is_interrupted(
        self, update: int, error: type[BaseException]
    ) -> None:
        bare = learner()
        bare.fit(2)
        expected = trained(bare)
        tested = learner()
        with pytest.raises(error), tested.added_cbs([stop_at(update, error)]):
            find(tested)
        tested.fit(2)
        assert trained(tested) == expected


class TestARangeTestLeavesNothing:
    @pytest.mark.parametrize("make_loader", IN_PROCESS.values(), ids=IN_PROCESS)
    @pytest.mark.parametrize("opt_func", OPTIMIZERS.values(), ids=OPTIMIZERS)
    @pytest.mark.parametrize("fitted", [False, True], ids=["new", "fitted"])
    def test_every_object_and_bit_is_as_before(
        self, fitted: bool, opt_func: Any, make_loader: Any
    ) -> None:
        learn = learner(make_loader, opt_func)
        if fitted:
            learn.fit(1)
        learn.model.head.weight.grad = torch.ones(1, 8)
        learn.model.body[0].eval()
        before = LearnerState(learn)
        find(learn)
        assert before.changes(LearnerState(learn)) == []

    @pytest.mark.parametrize("error", [KeyboardInterrupt, ArithmeticError])
    @pytest.mark.parametrize(
        "event",
        ["before_fit", "before_batch", "after_loss", "after_backward", "before_step", "after_step"],
    )
    def test_also_when_an_event_raises(self, event: str, error: type[BaseException]) -> None:
        learn = learner()
        update = 0 if event == "before_fit" else 2
        with learn.added_cbs([stop_at(update, error, event)]):
            before = LearnerState(learn)
            with pytest.raises(error):
                find(learn)
            assert before.changes(LearnerState(learn)) == []

    def test_also_with_a_loader_that_fails(self) -> None:
        class Broken(Noisy):
            def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
                if i == 11:
                    raise OSError("disk")
                return super().__getitem__(i)

        learn = learner(lambda: DataLoader(Broken(), batch_size=8, shuffle=True))
        before = LearnerState(learn)
        with pytest.raises(OSError, match="disk"):
            find(learn)
        assert before.changes(LearnerState(learn)) == []

    def test_gradients_that_the_optimizer_does_not_hold(self) -> None:
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
        model[0].weight.grad = torch.ones(4, 4)
        learn = Learner(
            (in_memory(), None),
            model,
            mse_loss,
            opt=SGD(model[1].parameters(), lr=0.1),
            device="cpu",
            seed=0,
        )
        before = LearnerState(learn)
        find(learn)
        assert before.changes(LearnerState(learn)) == []

    def test_which_parameters_train(self) -> None:
        def swap(learn: Any) -> None:
            for parameter in learn.model.parameters():
                parameter.requires_grad_(not parameter.requires_grad)

        callback = Callback(before_train=swap)
        callback.runs_in = frozenset(("range_test",))
        learn = learner(in_memory, AdamW, callback)
        flags = [parameter.requires_grad for parameter in learn.model.parameters()]
        assert set(flags) == {True, False}
        find(learn)
        assert [parameter.requires_grad for parameter in learn.model.parameters()] == flags

    def test_fields_of_an_optimizer(self) -> None:
        class Counting(SGD):
            count = 0

            def step(self, closure: Any = None) -> Any:
                self.count += 1
                return super().step(closure)

        learn = toy_learner(opt_func=Counting)
        learn.opt.count = 7
        find(learn)
        assert learn.opt.count == 7

    def test_a_loader_that_a_callback_replaces(self) -> None:
        def replace(learn: Any) -> None:
            learn.dls.train = [next(iter(learn.dls.train))]

        callback = Callback(before_fit=replace)
        callback.stage = Stage.PREPARE
        learn = toy_learner(cbs=(callback,))
        before = LearnerState(learn)
        find(learn)
        assert before.changes(LearnerState(learn)) == []

    def test_what_a_loss_module_learns(self) -> None:
        class Loss(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.scale = nn.Parameter(torch.ones(()))
                self.register_buffer("mean", torch.zeros(()))

            def forward(self, pred: Tensor, yb: Tensor) -> Tensor:
                self.mean += 1
                return mse_loss(pred * self.scale, yb)

        learn = toy_learner(loss_func=Loss())
        before = LearnerState(learn)
        find(learn)
        assert before.changes(LearnerState(learn)) == []

    def test_tensors_that_inference_mode_made(self) -> None:
        class Caching(nn.Linear):
            def __init__(self) -> None:
                super().__init__(4, 1)
                self.register_buffer("mean", None)

            def forward(self, x: Tensor) -> Tensor:
                if not self.training:
                    self.mean = x.mean() + 0
                return super().forward(x)

        learn = Learner((in_memory(), in_memory()), Caching(), mse_loss, device="cpu", seed=0)
        learn.get_preds(inference_mode=True)
        before = LearnerState(learn)
        find(learn)
        assert before.changes(LearnerState(learn)) == []

    def test_a_list_of_batches_is_not_copied(self) -> None:
        x = torch.randn(8, 4)
        batches = [(x, x.sum(1, keepdim=True))] * 4
        learn = Learner((batches, batches), nn.Linear(4, 1), mse_loss, device="cpu", seed=0)
        snapshot = Snapshot(learn)
        assert id(x) not in snapshot._capture._seen
        assert id(learn.model.weight) in snapshot._capture._seen

    def test_a_lazy_model_is_refused_in_words(self) -> None:
        with warnings.catch_warnings(action="ignore"):  # some versions of torch warn of them
            lazy = nn.LazyLinear(1)
        learn = Learner((in_memory(), None), lazy, mse_loss, device="cpu", seed=0)
        with pytest.raises(ValueError, match="run one batch through the model first"):
            find(learn)


class TestInTheMiddleOfAFit:
    @staticmethod
    def finder(event: str, at: int) -> Callback:
        def run(learn: Any) -> None:
            if learn.total_updates == at and learn._run == "fit":
                before = LearnerState(learn)
                find(learn, 8)
                assert before.changes(LearnerState(learn)) == []

        return Callback(**{event: run})

    @pytest.mark.parametrize("make_loader", IN_PROCESS.values(), ids=IN_PROCESS)
    @pytest.mark.parametrize(
        ("event", "at"),
        [
            ("before_fit", 0),
            ("before_train", 6),
            ("after_step", 1),
            ("after_step", 8),
            ("after_batch", 9),
            ("after_epoch", 6),
            ("after_fit", 12),
        ],
    )
    def test_the_fit_ends_in_the_same_bits(self, event: str, at: int, make_loader: Any) -> None:
        bare = learner(make_loader)
        bare.fit_one_cycle(2)
        expected = trained(bare)
        tested = learner(make_loader)
        tested.fit_one_cycle(2, cbs=[self.finder(event, at)])
        assert trained(tested) == expected

    def test_gradients_that_wait_for_their_update_are_kept(self) -> None:
        class Accumulate(Callback):
            stage = Stage.PREPARE
            during = "train"

            def before_fit(self, learn: Any) -> None:
                learn.batches_per_update = 2
                learn.plan_updates()

            def after_backward(self, learn: Any) -> None:
                if learn.batches_in_window < 2 and learn.iter + 1 < learn.n_iter:
                    raise CancelStep

        class FindInWindow(Callback):
            def after_batch(self, learn: Any) -> None:
                if learn.training and learn.batches_in_window == 1 and learn.iter == 2:
                    find(learn, 8)

        bare = learner(in_memory, AdamW, Accumulate())
        bare.fit(2)
        expected = trained(bare)
        tested = learner(in_memory, AdamW, Accumulate())
        tested.fit(2, cbs=[FindInWindow()])
        assert tested.total_updates == 6
        assert trained(tested) == expected

    @pytest.mark.parametrize("shared", [False, True], ids=["two loaders", "one loader"])
    def test_persistent_workers_go_on_with_their_pass(self, shared: bool) -> None:
        def make() -> Learner:
            learn = learner(partial(workers, persistent=True))
            if shared:
                learn.dls.valid = learn.dls.train
            return learn

        bare = make()
        bare.fit(2)
        expected = trained(bare)
        tested = make()
        tested.fit(2, cbs=[self.finder("after_step", 2)])
        assert trained(tested) == expected

    def test_persistent_workers_of_a_wrapped_loader_go_on(self) -> None:
        class Wrapper:
            def __init__(self) -> None:
                self.loader = workers(persistent=True)

            def __len__(self) -> int:
                return len(self.loader)

            def __iter__(self) -> Iterator[Any]:
                return iter(self.loader)

        def make() -> Learner:
            learn = learner(Wrapper)
            learn.dls.valid = None
            return learn

        bare = make()
        bare.fit(1)
        expected = trained(bare)
        tested = make()
        tested.fit(1, cbs=[self.finder("after_step", 2)])
        assert trained(tested) == expected

    def test_an_error_inside_leaves_the_fit_to_go_on(self) -> None:
        def interrupted(learn: Any) -> None:
            if learn.total_updates == 3 and learn._run == "fit":
                with pytest.raises(KeyboardInterrupt):
                    find(learn)

        bare = learner()
        bare.fit(2)
        expected = trained(bare)
        tested = learner(in_memory, AdamW, stop_at(2, KeyboardInterrupt))
        tested.fit(2, cbs=[Callback(after_step=interrupted)])
        assert trained(tested) == expected


class TestNegativeControls:
    """Each leaves one part out of the restoring: then the checks above must see it."""

    @staticmethod
    def changes(learn: Learner) -> list[str]:
        learn.model.head.weight.grad = torch.ones(1, 8)
        before = LearnerState(learn)
        find(learn)
        return before.changes(LearnerState(learn))

    def test_without_anything(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Snapshot, "restore", lambda self: None)
        changed = self.changes(learner())
        for part in (
            "learn.model._modules['head']._parameters['weight']",
            "learn.model._modules['head']._parameters['weight'].grad",
            "learn.model._modules['body']._modules['1']._buffers['running_mean']",
            "learn.model._modules['body']._modules['2'].training",
            "learn.model.calls",
            "learn.opt.param_groups[0]['lr']",
            "learn.total_updates",
            "torch",
            "numpy",
            "random",
        ):
            assert part in changed
        for part in ("learn.opt.state", "legacy", "scaler", "['batches']", "['mean']", "['array']"):
            assert any(part in path for path in changed)

    @pytest.mark.parametrize("generator", ["python", "numpy", "torch"])
    def test_without_a_global_generator(
        self, generator: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        restore = RngState.restore

        def partly(self: RngState) -> None:
            now = {"python": random.getstate(), "numpy": np.random.get_state()}
            now["torch"] = torch.get_rng_state()
            setattr(self, generator, now[generator])
            restore(self)

        monkeypatch.setattr(RngState, "restore", partly)
        expected = {"python": "random"}.get(generator, generator)
        assert self.changes(learner()) == [expected]

    @pytest.mark.parametrize(
        ("kind", "part"),
        [
            (Tensor, "running_var"),
            (dict, "exp_avg"),
            (list, "['batches']"),
            (np.ndarray, "array"),
            (torch.Generator, ".torch"),
            (np.random.Generator, ".numpy"),
            (np.random.RandomState, ".legacy"),
            (random.Random, ".python"),
        ],
    )
    def test_without_one_kind_of_value(
        self, kind: type, part: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        restorer = restore._restorer
        monkeypatch.setattr(
            restore, "_restorer", lambda value: None if isinstance(value, kind) else restorer(value)
        )
        assert any(part in path for path in self.changes(learner()))

    def test_without_the_loaders(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(snapshot, "hold_loaders", lambda *loaders: lambda: None)

        class Counting:
            passes = 0

            def __iter__(self) -> Iterator[Any]:
                self.passes += 1
                return iter(in_memory())

        assert "learn.dls.train.passes" in self.changes(learner(Counting))

    def test_a_fit_that_starts_elsewhere_ends_elsewhere(self) -> None:
        bare, other = learner(), learner()
        other.total_epochs = 1
        bare.fit(1)
        expected = trained(bare)
        other.fit(1)
        assert trained(other) != expected


class TestPreserved:
    def test_preserved_puts_a_learner_back_also_after_an_error(self) -> None:
        learn = toy_learner()
        before = LearnerState(learn)
        with (  # noqa: PT012
            pytest.raises(KeyError),
            preserved(learn),
            learn.removed_cbs(Recorder),
        ):
            learn.fit(1)
            raise KeyError
        assert before.changes(LearnerState(learn)) == []

    def test_a_cancelled_batch_is_put_back_too(self) -> None:
        def cancel(learn: Any) -> None:
            if learn.iter == 1:
                raise CancelBatch

        callback = Callback(after_pred=cancel)
        callback.stage = Stage.PREPARE
        learn = learner(in_memory, AdamW, callback)
        before = LearnerState(learn)
        find(learn)
        assert before.changes(LearnerState(learn)) == []
