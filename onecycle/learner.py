"""`Learner`: the verbs that a person calls. How they run is in `onecycle.loop`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from onecycle import recipes
from onecycle.assembly import move_to, param_groups
from onecycle.callback import Callback
from onecycle.callbacks.landing import land
from onecycle.callbacks.lr_finder import LRFinder, LRFindResult
from onecycle.callbacks.param_schedule import MomentumCycler, OneCycleSchedule, Policy
from onecycle.callbacks.progress import Progress
from onecycle.callbacks.recorder import Recorder
from onecycle.callbacks.replan import Extend, Replan
from onecycle.callbacks.resume import resuming
from onecycle.checks import (
    check_between_updates,
    check_budget,
    check_callbacks,
    check_parts,
)
from onecycle.compiled import choose_stepper
from onecycle.data import DataLoaders, as_dataloaders
from onecycle.errors import MissingCallbackError
from onecycle.experiments import RangeTests, range_tests
from onecycle.handlers import draw_loop
from onecycle.hyperparams import GroupValues
from onecycle.loop import Loop, log
from onecycle.metrics import MetricSet, as_metrics, batch_size_of
from onecycle.model_files import read_model, write_model
from onecycle.nested import concatenate, map_tensors
from onecycle.optimizers import OptFunc, Splitter
from onecycle.predictions import Predictions
from onecycle.schedules import Schedule
from onecycle.restore import kept_grad_mode, preserved
from onecycle.studies import Studies
from onecycle.suggestions import Rule, minimum, valley
from onecycle.summary import Summary, summarize
from onecycle.transfer import to_device
from onecycle.tta import Transform, predict_views


class Learner(Studies):
    """Train a model: it owns the loaders, the model, the loss, the optimizer and the loop.

    What a callback reads on a learner is listed at `onecycle.state.LoopState`.

    Args:
        dls: `DataLoaders`, or a pair ``(train, valid)`` of iterables of batches; ``valid`` may be
            ``None``. A batch is ``(xb, yb)``, a longer tuple (see ``n_inp``) or a dict, which the
            model gets as keywords and the loss function whole.
        model: It is moved to ``device``.
        loss_func: Called with ``(pred, yb)``, returns a scalar. ``None`` for a model that returns
            its loss: as ``pred.loss``, ``pred["loss"]``, or as the prediction itself.
        opt_func: An optimizer class, or a callable ``(params, lr=...)``. Made fused where it can
            be.
        lr: The learning rate: one number, one for each parameter group, or a slice. By default
            1e-3, or with ``opt=`` what it has.
        metrics: Functions ``(pred, yb) -> scalar``, or objects with reset, update and compute.
        cbs: Callbacks for every fit, besides the `Recorder` and the `Progress` that each learner
            has.
        opt: An optimizer that exists, instead of ``opt_func``; used as it is.
        wd: The weight decay; ``None`` for the optimizer's own.
        wd_bn_bias: Whether norms and biases decay too.
        moms: Momentum at the start, the peak and the end of a cycle.
        splitter: Returns the parameter groups of the model.
        n_inp: How many parts of a longer batch are inputs; by default all but the last.
        device: By default the accelerator if there is one, else the CPU.
        seed: Of the order of the data; drawn from torch by default. Weights and dropout come from
            torch's own generator: ``torch.manual_seed``.
        fast_step: Let the optimizer's fused kernel be called directly, which gives the same bits
            with less Python around it: see `FastStepper`. Where that cannot be, a log message
            says why.
        compile: ``True``, or a mode of ``torch.compile`` such as ``"max-autotune"``: compile the
            model, and the step of SGD, Adam or AdamW, such that a schedule recompiles nothing:
            see `CompiledSteps`. The first batches take seconds to minutes; a batch of another
            size, such as the last one of an epoch, has the model compiled once more. Results
            agree with those of the plain learner to rounding.

    Raises:
        TypeError, ValueError: For what cannot work, with what to do.
        RuntimeError: With ``compile``, where torch has no compiler for the device.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from onecycle import Learner, TensorLoader, mse
        >>> x = torch.linspace(-1, 1, 64).unsqueeze(1)
        >>> train = TensorLoader(x, 3 * x, batch_size=8, shuffle=True)
        >>> learn = Learner((train, train), nn.Linear(1, 1), nn.functional.mse_loss,
        ...                 metrics=[mse], device="cpu", seed=0)
        >>> with learn.no_bar():
        ...     learn.fit_one_cycle(10, lr_max=0.3)
        >>> learn.validate()["mse"] < 0.01
        True
    """

    def __init__(
        self,
        dls: DataLoaders | tuple[Any, Any],
        model: nn.Module,
        loss_func: Callable[..., Tensor] | None = None,
        opt_func: OptFunc = AdamW,
        lr: GroupValues | None = None,
        metrics: Sequence[Any] = (),
        cbs: Sequence[Callback] = (),
        *,
        opt: Optimizer | None = None,
        wd: float | None = None,
        wd_bn_bias: bool = False,
        moms: tuple[float, float, float] = (0.95, 0.85, 0.95),
        splitter: Splitter | None = None,
        n_inp: int | None = None,
        device: str | torch.device | None = None,
        seed: int | None = None,
        fast_step: bool = False,
        compile: bool | str = False,
    ) -> None:
        check_parts(model, loss_func, cbs)
        move_to(device, model, loss_func)
        groups = param_groups(model, opt, opt_func, wd, splitter, wd_bn_bias)
        self.lr = groups.get("lr") if lr is None else groups.expand("lr", lr)
        groups.set("lr", self.lr)
        self.moms = moms
        super().__init__(
            as_dataloaders(dls),
            model,
            loss_func,
            groups,
            cbs=_with_defaults(cbs),
            metrics=list(as_metrics(metrics).values()),
            device=next(model.parameters()).device,
            seed=int(torch.randint(2**62, ())) if seed is None else seed,
            n_inp=n_inp,
            make_stepper=choose_stepper(model, groups.opt, fast_step, compile),
        )

    @property
    def recorder(self) -> Recorder:
        """The recorder: ``learn.recorder.history``, ``learn.recorder.plot_loss()``."""
        for callback in self.cbs:
            if isinstance(callback, Recorder):
                return callback
        raise MissingCallbackError("this learner has no Recorder now: it was removed from cbs")

    # Training -----------------------------------------------------------------------------

    def fit(
        self,
        n_epoch: int | None,
        lr: GroupValues | None = None,
        wd: float | None = None,
        cbs: Sequence[Callback] | None = None,
        *,
        steps_per_epoch: int | None = None,
        max_updates: int | None = None,
        resume: str | Path | None = None,
        extend: Extend | None = None,
    ) -> None:
        """Train with a constant learning rate, or one that a callback drives.

        Args:
            n_epoch: The number of epochs; ``None`` to stop by ``max_updates`` alone.
            lr: The learning rate; by default the learner's.
            wd: The weight decay from here on; by default unchanged.
            cbs: Callbacks for this fit only.
            steps_per_epoch: The batches of an epoch, where the loader has no length or more.
            max_updates: The optimizer updates after which the fit ends.
            resume: A checkpoint, or the folder of a `Checkpoint`, to go on from; the other
                arguments are those of the interrupted fit. Where there is none, the fit starts
                from the beginning and logs so.
            extend: How a resumed fit goes on if its length, its rates, its schedules or the
                accumulation are others than before; by default that is refused. ``"keep"``: the
                old schedules go on by the old length, and past its end the last values hold.
                ``"restretch"``: the new schedules over the new length, read at the present update;
                values may jump. ``"tail"``: whatever the new schedules drive goes on half a cosine
                from where it is to where they end; without one, so does the rate to ``lr``. Other
                schedules, such as those of an `AttributeScheduler`, run over the old length with
                ``"keep"``, else over the new one. If nothing has changed, it changes nothing.

        Raises:
            ValueError, TypeError: For what cannot work, before the first batch.
            CheckpointError: If no checkpoint can be read, or the model is another one.

        Example:
            >>> from onecycle.testing import toy_learner
            >>> learn = toy_learner(n_batches=4)
            >>> learn.fit(2, lr=0.05)
            >>> learn.recorder.history["lr"].values.tolist() == [0.05] * 8
            True
        """
        check_budget(n_epoch, steps_per_epoch, max_updates)
        check_callbacks(cbs or ())
        resumed = resuming(resume, extend)
        rates = self.groups.expand("lr", self.lr if lr is None else lr)
        if wd is not None:
            self.groups.set("weight_decay", wd)
        self.groups.set("lr", rates)
        self.run_fit(
            n_epoch,
            cbs=[*(cbs or ()), *resumed],
            steps_per_epoch=steps_per_epoch,
            max_updates=max_updates,
        )

    def fit_one_cycle(
        self,
        n_epoch: int | None,
        lr_max: GroupValues | None = None,
        div: float | None = None,
        div_final: float | None = None,
        pct_start: float | None = None,
        moms: tuple[float, float, float] | Literal[False] | None = None,
        wd: float | None = None,
        cbs: Sequence[Callback] | None = None,
        *,
        policy: Policy | Schedule = "cosine",
        steps_per_epoch: int | None = None,
        max_updates: int | None = None,
        resume: str | Path | None = None,
        extend: Extend | None = None,
    ) -> None:
        """Train by the 1cycle policy: the rate rises and falls, momentum the other way.

        Args:
            n_epoch: The number of epochs; ``None`` to stop by ``max_updates`` alone.
            lr_max: The peak; by default the learner's rate.
            div: The rate begins at ``lr_max / div``; by default 25, or the policy's own.
            div_final: It ends at ``lr_max / div_final``; by default 1e5, or the policy's own.
            pct_start: The fraction of the updates in which it rises, in [0, 1]; by default 0.25,
                or the policy's own: see `OneCycleSchedule`.
            moms: Momentum at the start, the peak and the end; ``None`` for the learner's (with
                a `Schedule` as policy: unchanged), ``False`` to leave momentum alone.
            wd: The weight decay from here on; by default unchanged.
            cbs: Callbacks for this fit only.
            policy: ``"cosine"`` (fastai 2), ``"linear"``, ``"three_phase"`` (the paper's),
                ``"smith"`` (its training logs'), ``"torch"`` (``OneCycleLR``), or a `Schedule`,
                whose values are the rate of the last parameter group.
            steps_per_epoch: The batches of an epoch, where the loader has no length or more.
            max_updates: The optimizer updates after which the fit ends.
            resume: A checkpoint, or the folder of a `Checkpoint`, to go on from; the other
                arguments are those of the interrupted fit. Where there is none, the fit starts
                from the beginning and logs so.
            extend: How a resumed fit goes on by another plan, as in `fit`: ``"keep"``,
                ``"restretch"`` or ``"tail"``, which goes to ``lr_max / div_final``.

        Raises:
            ValueError, TypeError: For what cannot work, before the first batch.
            CheckpointError: If no checkpoint can be read, or the model is another one.

        Source:
            Smith & Topin, "Super-Convergence", arXiv:1708.07120; Smith, "A disciplined
            approach to neural network hyper-parameters", arXiv:1803.09820.

        Example:
            >>> from onecycle.testing import toy_learner
            >>> learn = toy_learner(n_batches=5)
            >>> learn.fit_one_cycle(2, lr_max=0.1)
            >>> lrs = learn.recorder.history["lr"].values.tolist()
            >>> lrs[0] == 0.1 / 25, lrs[-1] == 0.1 / 1e5
            (True, True)
        """
        check_callbacks(cbs or ())
        cycle = OneCycleSchedule(
            self.lr if lr_max is None else lr_max, div, div_final, pct_start, policy=policy
        )
        both = [cycle, *self._momentum_cycle(moms, pct_start, policy)]
        self.fit(
            n_epoch,
            wd=wd,
            cbs=[*both, *(cbs or ())],
            steps_per_epoch=steps_per_epoch,
            max_updates=max_updates,
            resume=resume,
            extend=extend,
        )

    def _momentum_cycle(
        self,
        moms: tuple[float, float, float] | Literal[False] | None,
        pct_start: float | None,
        policy: Policy | Schedule,
    ) -> list[Callback]:
        """Return what cycles momentum: nothing where it is not asked for and there is none."""
        if moms is False or (moms is None and isinstance(policy, Schedule)):
            return []
        if moms is None and not self.groups.momentum_is_on():
            log.warning(
                "%s %s: only the learning rate is cycled (moms=False says so without a word)",
                type(self.opt).__name__,
                "has momentum 0" if self.groups.has_momentum() else "has no momentum",
            )
            return []
        shape: Policy = "cosine" if isinstance(policy, Schedule) else policy
        return [MomentumCycler(self.moms if moms is None else moms, pct_start, policy=shape)]

    def fit_clr_beta(
        self,
        n_epoch: int,
        lr: GroupValues,
        use_clr_beta: Sequence[float],
        wd: float | None = None,
        cbs: Sequence[Callback] | None = None,
        *,
        resume: str | Path | None = None,
        extend: Extend | None = None,
    ) -> None:
        """Train as fastai 0.7 did with ``use_clr_beta``: lines up and down, and a tail.

        Args:
            n_epoch: The number of epochs.
            lr: The peak.
            use_clr_beta: ``(div, pct)`` or ``(div, pct, max_mom, min_mom)``. The rate begins and
                comes back to ``lr / div``; ``pct`` percent of the updates are left for the tail
                below it. Momentum is cycled where four are given.
            wd: The weight decay from here on; by default unchanged.
            cbs: Callbacks for this fit only.
            resume: As in `fit`.
            extend: As in `fit`.

        Raises:
            ValueError, TypeError: For what cannot work, before the first batch.
            CheckpointError: If no checkpoint can be read, or the model is another one.

        Source:
            Smith, "A disciplined approach to neural network hyper-parameters",
            arXiv:1803.09820, as fastai 0.7 had it.

        Example:
            >>> from onecycle.testing import toy_learner
            >>> learn = toy_learner(n_batches=10)
            >>> learn.fit_clr_beta(2, 1.0, (10, 10, 0.95, 0.85))
            >>> learn.recorder.history["lr"].values[[0, 9, 18]].round(6).tolist()
            [0.1, 1.0, 0.1]
        """
        recipes.fit_clr_beta(
            self, n_epoch, lr, use_clr_beta, wd=wd, cbs=cbs, resume=resume, extend=extend
        )

    def fit_flat_cos(
        self,
        n_epoch: int,
        lr: GroupValues | None = None,
        div_final: float = 1e5,
        pct_start: float = 0.75,
        wd: float | None = None,
        cbs: Sequence[Callback] | None = None,
        *,
        resume: str | Path | None = None,
        extend: Extend | None = None,
    ) -> None:
        """Train with a constant rate that falls on half a cosine at the end.

        Args:
            n_epoch: The number of epochs.
            lr: The rate that is held; by default the learner's.
            div_final: The rate ends at ``lr / div_final``.
            pct_start: The fraction of the updates after which it falls.
            wd: The weight decay from here on; by default unchanged.
            cbs: Callbacks for this fit only.
            resume: As in `fit`.
            extend: As in `fit`.

        Raises:
            ValueError, TypeError: For what cannot work, before the first batch.
            CheckpointError: If no checkpoint can be read, or the model is another one.

        Example:
            >>> from onecycle.testing import toy_learner
            >>> learn = toy_learner(n_batches=9)
            >>> learn.fit_flat_cos(1, 0.1, pct_start=0.5)
            >>> learn.recorder.history["lr"].values.round(4).tolist()
            [0.1, 0.1, 0.1, 0.1, 0.1, 0.0854, 0.05, 0.0146, 0.0]
        """
        recipes.fit_flat_cos(
            self, n_epoch, lr, div_final, pct_start, wd=wd, cbs=cbs, resume=resume, extend=extend
        )

    def fit_sgdr(
        self,
        n_cycles: int,
        cycle_len: int,
        lr_max: GroupValues | None = None,
        cycle_mult: int = 2,
        cbs: Sequence[Callback] | None = None,
        wd: float | None = None,
        *,
        resume: str | Path | None = None,
        extend: Extend | None = None,
    ) -> None:
        """Train in cycles, in each of which the rate falls from its maximum to 0.

        Args:
            n_cycles: The number of cycles.
            cycle_len: The epochs of the first cycle.
            lr_max: The rate at the first update of each cycle; by default the learner's. At its
                last update it is 0.
            cycle_mult: How many times longer each cycle is than the one before.
            cbs: Callbacks for this fit only.
            wd: The weight decay from here on; by default unchanged.
            resume: As in `fit`.
            extend: As in `fit`.

        Raises:
            ValueError, TypeError: For what cannot work, before the first batch.
            CheckpointError: If no checkpoint can be read, or the model is another one.

        Source:
            Loshchilov & Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts",
            arXiv:1608.03983.

        Example:
            >>> from onecycle.testing import toy_learner
            >>> learn = toy_learner(n_batches=3)
            >>> learn.fit_sgdr(2, 1, 0.1)
            >>> learn.recorder.history["lr"].values.round(3).tolist()
            [0.1, 0.05, 0.0, 0.1, 0.09, 0.065, 0.035, 0.01, 0.0]
        """
        recipes.fit_sgdr(
            self,
            n_cycles,
            cycle_len,
            lr_max,
            cycle_mult,
            wd=wd,
            cbs=cbs,
            resume=resume,
            extend=extend,
        )

    def fine_tune(
        self,
        epochs: int,
        base_lr: float = 2e-3,
        freeze_epochs: int = 1,
        lr_mult: float = 100,
        pct_start: float = 0.3,
        div: float = 5.0,
        *,
        wd: float | None = None,
        cbs: Sequence[Callback] | None = None,
    ) -> None:
        """Train the last parameter group of a pretrained model, then all of them.

        First one cycle with all groups frozen but the last, as `freeze` does; then one with all
        of them, at half the rate, and smaller rates for the earlier groups. These are two fits:
        to be able to resume, call `freeze`, `fit_one_cycle`, `unfreeze` and `fit_one_cycle`, with
        a `Checkpoint` folder and ``resume=`` for each fit.

        Args:
            epochs: The epochs with all groups.
            base_lr: The peak of the first cycle; the second has half of it.
            freeze_epochs: The epochs with the last group alone; may be 0.
            lr_mult: In the second cycle, the first group's rate is this much smaller than the
                last group's.
            pct_start: Of the second cycle.
            div: Of the second cycle.
            wd: The weight decay from here on; by default unchanged.
            cbs: Callbacks for both fits.

        Raises:
            ValueError, TypeError: For what cannot work, before the first batch.

        Example:
            >>> from onecycle.testing import toy_learner
            >>> def body_and_head(model):
            ...     return [model[0].parameters(), model[2].parameters()]
            >>> learn = toy_learner(splitter=body_and_head)
            >>> learn.fine_tune(2, 0.1)
            >>> learn.total_epochs
            3
        """
        recipes.fine_tune(
            self, epochs, base_lr, freeze_epochs, lr_mult, pct_start, div, wd=wd, cbs=cbs
        )

    def land(
        self,
        updates: int,
        *,
        reason: str | None = None,
        cbs: Sequence[Callback] | None = None,
        resume: str | Path | None = None,
    ) -> None:
        """End a fit well: let every rate fall from where it is to about nothing.

        Called by a callback while a fit runs, it changes the plan: so many updates more, and the
        fit ends as any other, with validation. Epochs go on as long as that needs. Called after a
        fit that ended or was interrupted, it is a fit of so many updates.

        The learning rate of each parameter group goes on half a cosine from its present value, at
        the first of these updates, to 1/100000 of it, at the last; one update alone has the present
        value. Momentum, where it was cycled, goes back likewise to what it was at the first update
        of that fit, as the `Recorder` has it. Whatever else is scheduled stays as it is. A second
        call begins a new landing.

        Args:
            updates: The optimizer updates of the landing, at least 1.
            reason: Why, to stand before "landed in ..." in ``learn.stop_reason``.
            cbs: Callbacks for the fit that it is, if none is running.
            resume: As in `fit`, likewise.

        Raises:
            ValueError, TypeError: For what is no number of updates; for ``cbs`` or ``resume``
                while a fit is running.
            RuntimeError: While a range test is running.

        Example:
            >>> from onecycle import Callback
            >>> from onecycle.testing import toy_learner
            >>> def land(learn):
            ...     if learn.n_updates == 10:
            ...         learn.land(5)
            >>> learn = toy_learner()
            >>> learn.fit(100, lr=0.1, cbs=[Callback(after_step=land)])
            >>> learn.stop_reason, learn.n_updates
            ('landed in 5 updates, from update 11', 15)
            >>> learn.recorder.history["lr"].values[-6:].round(4).tolist()
            [0.1, 0.1, 0.0854, 0.05, 0.0146, 0.0]
        """
        land(self, updates, reason=reason, cbs=cbs, resume=resume)

    @property
    def is_landing(self) -> bool:
        """Whether the fit that is running has been told to land."""
        return any(isinstance(cb, Replan) and cb.landing is not None for cb in self.cbs)

    def freeze(self, *, train_bn: bool = True) -> None:
        """Let only the last of the splitter's groups train, until `unfreeze`.

        Args:
            train_bn: As in `freeze_to`.
        """
        recipes.freeze_to(self, -1, train_bn=train_bn)

    def freeze_to(self, n: int, *, train_bn: bool = True) -> None:
        """Let only the splitter's groups from the n-th on train; sets ``requires_grad``.

        Args:
            n: The first group that trains, from 0; a negative one counts from the end.
            train_bn: Let the normalization layers of frozen groups train all the same, and their
                running statistics follow the data. ``False`` keeps both as they are: such a layer
                stays in evaluation mode in every pass, until the next call of ``freeze_to``.

        Raises:
            ValueError: If there is no such group; shows the groups.

        Example:
            >>> from onecycle.testing import toy_learner
            >>> def body_and_head(model):
            ...     return [model[0].parameters(), model[2].parameters()]
            >>> learn = toy_learner(splitter=body_and_head)
            >>> learn.freeze_to(-1)
            >>> [p.requires_grad for p in learn.model.parameters()]
            [False, False, True, True]
        """
        recipes.freeze_to(self, n, train_bn=train_bn)

    def unfreeze(self) -> None:
        """Let all groups train, normalization layers included; sets ``requires_grad``."""
        recipes.freeze_to(self, 0, train_bn=True)

    @overload
    def lr_find(
        self,
        start_lr: float = ...,
        end_lr: float = ...,
        num_it: int = ...,
        stop_div: bool = ...,
        show_plot: bool = ...,
        suggest_funcs: Sequence[Rule] = ...,
        *,
        linear: bool = ...,
        valid: bool = ...,
    ) -> LRFindResult: ...

    @overload
    def lr_find(
        self,
        start_lr: float = ...,
        end_lr: float = ...,
        num_it: int = ...,
        stop_div: bool = ...,
        show_plot: bool = ...,
        suggest_funcs: Sequence[Rule] = ...,
        *,
        linear: bool = ...,
        valid: bool = ...,
        wds: Sequence[float] | None = ...,
        moms: Sequence[float] | None = ...,
        batch_sizes: Sequence[int] | None = ...,
    ) -> RangeTests: ...

    def lr_find(
        self,
        start_lr: float = 1e-7,
        end_lr: float = 10.0,
        num_it: int = 100,
        stop_div: bool = True,
        show_plot: bool = True,
        suggest_funcs: Sequence[Rule] = (minimum, valley),
        *,
        linear: bool = False,
        valid: bool = False,
        wds: Sequence[float] | None = None,
        moms: Sequence[float] | None = None,
        batch_sizes: Sequence[int] | None = None,
    ) -> LRFindResult | RangeTests:
        """Run the learning-rate range test: the rate rises from batch to batch until the loss does.

        It leaves nothing behind: afterwards, also after an error or Ctrl-C, everything that
        training changes is bit for bit as before. With several parameter groups the rate is that
        of the last one, and the others keep their ratios to it.

        Args:
            start_lr: The first rate, above 0.
            end_lr: The last rate, reached unless the test stops.
            num_it: The number of updates.
            stop_div: Stop when the smoothed loss is over four times its best. A loss that is not
                finite always stops.
            show_plot: Draw the curve with the suggestions, as ``learn.recorder.plot_lr_find()``.
            suggest_funcs: The rules, among ``minimum, valley, slide, steep``, or functions
                ``(lrs, smoothed losses) -> rate``. The first one gives ``result.suggestion``.
            linear: Let the rate rise linearly instead of exponentially.
            valid: After each update, measure loss and metrics on the next validation batch too:
                ``result.valid_losses`` and ``result.metrics``. The training losses, the
                suggestions and when to stop are the same to the bit.
            wds: Run one test for each of these weight decays.
            moms: Run one test for each of these momenta.
            batch_sizes: Run one test for each of these batch sizes of the training loader: a
                `TensorLoader`, or a DataLoader made with ``batch_size=``.

        Returns:
            Rates, losses, suggestions, and why the test stopped; of several tests a `RangeTests`,
            which has such a result for each setting and prints as a table.

        Raises:
            ValueError: If the rates do not rise; if ``valid`` is asked for without a validation
                loader; if more than one of ``wds``, ``moms`` and ``batch_sizes`` is given, or
                one of them is nothing that the optimizer or the loader can have.
            RuntimeError: In a callback, between the forward and the backward pass of a batch, or
                in validation.

        Source:
            Smith, "Cyclical Learning Rates for Training Neural Networks", arXiv:1506.01186;
            the overlaid tests are those of arXiv:1803.09820; ``valid`` and ``wds`` are
            ``lr_find2`` of fastai 0.7.

        Example:
            >>> from onecycle.testing import toy_learner
            >>> learn = toy_learner()
            >>> result = learn.lr_find(start_lr=1e-4, show_plot=False)
            >>> result.suggestion == result.suggestions["minimum"]
            True
        """
        if self._run is not None and self.training:
            check_between_updates(self.event)
        sweeps = {"weight_decay": wds, "momentum": moms, "batch_size": batch_sizes}
        asked = [(name, settings) for name, settings in sweeps.items() if settings is not None]
        if len(asked) > 1:
            raise ValueError("one thing is varied at a time: give wds, moms or batch_sizes")

        def test() -> LRFindResult:
            finder = LRFinder(
                start_lr, end_lr, num_it, stop_div=stop_div, linear=linear, valid=valid
            )
            with preserved(self):
                self._run = None  # a range test may also run between two updates of a fit
                self.run_fit(None, cbs=[finder], run="range_test", max_updates=num_it)
            return finder.result(suggest_funcs)

        result = range_tests(self, *asked[0], test) if asked else test()
        for callback in self.cbs:
            if isinstance(callback, Recorder):
                callback.lr_find_result = result
        if show_plot:
            result.plot()
        return result

    # Looking and inference ----------------------------------------------------------------

    @kept_grad_mode()  # copying the metrics may switch gradients off for a moment
    def validate(self, dl: Iterable[Any] | None = None) -> dict[str, float]:
        """Compute the loss and the metrics over a loader; leaves everything as it was.

        Args:
            dl: By default the validation loader.

        Returns:
            ``"valid_loss"`` and each metric by name.
        """
        means = MetricSet(deepcopy(self.metrics))  # theirs may be in the middle of a pass
        means.reset()

        def collect(learn: Loop) -> None:
            if learn.pred is not None:
                means.update(learn.pred, learn.yb, learn.loss, batch_size_of(learn.batch))

        self.infer(self._loader(dl), collect)
        return means.compute()

    def get_preds(
        self, dl: Iterable[Any] | None = None, *, inference_mode: bool = False
    ) -> Predictions:
        """Predict a whole loader; leaves everything as it was.

        Args:
            dl: By default the validation loader.
            inference_mode: Use ``torch.inference_mode``: see `Loop.infer`.

        Returns:
            Predictions and targets on the CPU, concatenated over the batches.
        """
        preds: list[Any] = []
        targets: list[Any] = []

        def collect(learn: Loop) -> None:
            if learn.pred is not None:
                preds.append(to_device(learn.pred, torch.device("cpu")))
                targets.append(to_device(learn.yb, torch.device("cpu")))

        self.infer(self._loader(dl), collect, with_loss=False, inference_mode=inference_mode)
        return Predictions(concatenate(preds), concatenate(targets))

    def tta(
        self,
        dl: Iterable[Any] | None = None,
        *,
        transforms: Sequence[Transform] | None = None,
        n: int | None = None,
        beta: float = 0.25,
    ) -> Predictions:
        """Predict with test-time augmentation: the mean over several views of each sample.

        Leaves everything as it was. What is averaged are the predictions as the model returns
        them (logits, if it does), so that losses and metrics take them.

        Args:
            dl: By default the validation loader.
            transforms: Functions that return a view of ``xb``, such as
                ``lambda xb: xb.flip(-1)``. By default, for images: the mirror image, and two
                shifts by a pixel of image and mirror image.
            n: Instead of ``transforms``, predict so many times with the training augmentations
                among the learner's callbacks, `RandomFlip` and the like, which draw anew each
                time. After the same ``torch.manual_seed`` they draw the same.
            beta: The share of the prediction without a view, in [0, 1]; the mean over the views
                has the rest.

        Returns:
            As `get_preds`.

        Raises:
            TypeError, ValueError: If predictions are no tensor of floats, inputs no images where
                views of images are asked for, or the loader gives another order each time.

        Example:
            >>> from onecycle.testing import toy_learner
            >>> learn = toy_learner()
            >>> learn.tta(transforms=[lambda xb: 2 * xb, lambda xb: xb / 2]).preds.shape
            torch.Size([64, 1])
        """
        return predict_views(self, dl, transforms, n=n, beta=beta)

    def predict(self, x: Any) -> Any:
        """Predict one sample; leaves everything as it was.

        Args:
            x: The input of one sample, without a batch dimension: a tensor, a tuple of tensors
                for a model of several inputs, or a dict.

        Returns:
            What the model says of it, on the CPU, without a batch dimension.
        """
        batch = map_tensors(lambda part: part[None], x if isinstance(x, tuple | dict) else (x,))
        n_inp, self.n_inp = self.n_inp, None if isinstance(batch, dict) else len(batch)
        try:
            preds = self.get_preds([batch]).preds
        finally:
            self.n_inp = n_inp
        return map_tensors(lambda part: part[0], preds)

    def summary(self) -> Summary:
        """Describe the model layer by layer, the groups and the optimizer; prints as a table."""
        return summarize(self)

    def show_training_loop(self) -> None:
        """Print the loop with the callbacks of this learner at their events."""
        print(draw_loop(self.cbs))

    @contextmanager
    def removed_cbs(self, *kinds: type[Callback] | Callback) -> Iterator[None]:
        """Run a block without some callbacks: given as objects or as types."""
        types = tuple(kind for kind in kinds if isinstance(kind, type))
        before = self.cbs
        self.cbs = [cb for cb in before if not isinstance(cb, types) and cb not in kinds]
        try:
            yield
        finally:
            self.cbs = before

    @contextmanager
    def no_bar(self) -> Iterator[None]:
        """Run a block without progress bars and without the table of epochs."""
        with self.removed_cbs(Progress):
            yield

    # Files --------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Save the model and the optimizer to a file, which is whole or not there.

        Args:
            path: Where to write; a file that is there is replaced.
        """
        write_model(path, self.model, self.opt)

    def load(self, path: str | Path, *, with_opt: bool = True) -> None:
        """Load what `save` wrote; runs no code from the file.

        Args:
            path: A file that `save` wrote.
            with_opt: Load the optimizer's state too.

        Raises:
            CheckpointError: If the file is none of ours, or does not fit this learner, which is
                then unchanged.
            OSError: If the file cannot be opened.
        """
        read_model(path, self.model, self.groups if with_opt else None)

    def _loader(self, dl: Iterable[Any] | None) -> Any:
        if dl is None and self.dls.valid is None:
            raise ValueError("this learner has no validation loader: pass one as dl")
        return self.dls.valid if dl is None else dl


def _with_defaults(cbs: Sequence[Callback]) -> list[Callback]:
    """Put a Recorder and a Progress before the callbacks, unless they have their own."""
    defaults: list[Callback] = [Recorder(), Progress()]
    return [new for new in defaults if not any(isinstance(cb, type(new)) for cb in cbs)] + [*cbs]
