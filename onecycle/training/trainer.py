"""`Trainer`: fit, range test, validate, predict: what a loop is good for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import RLock
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from onecycle.arguments import (
    Default,
    check_budget,
    check_count,
    check_duration,
    check_flag,
    check_flags,
    check_not_negative,
    check_path,
    shown,
)
from onecycle.callbacks.checkpoint import Checkpoint
from onecycle.callbacks.landing import land_running
from onecycle.callbacks.lr_finder import LRFinder
from onecycle.callbacks.max_time import UNDECIDED, MaxTime
from onecycle.callbacks.one_cycle import MomentumCycler, OneCycleSchedule, Policy
from onecycle.callbacks.precision import half_of
from onecycle.callbacks.progress import Progress
from onecycle.callbacks.recorder import Recorder, recorder_of
from onecycle.callbacks.resume import resuming, state_of, whole_or_undone
from onecycle.callbacks.run_bar import bars
from onecycle.checkpoints.fit_plan import Extend
from onecycle.checkpoints.folder_lock import locked
from onecycle.checkpoints.learner_files import load_learner, save_learner
from onecycle.checkpoints.snapshot import preserved
from onecycle.core.callback import Callback
from onecycle.core.checks import checked_callbacks
from onecycle.core.loop import Loop
from onecycle.core.restore import kept_grad_mode, surely
from onecycle.data.left_out import warn_of_left_out
from onecycle.data.loaders import DataLoaders, as_dataloaders
from onecycle.elsewhere import says_our_keywords
from onecycle.optim.build import OptFuncs, Splitter, param_groups
from onecycle.optim.compiled import CompiledSteps, choose_stepper
from onecycle.optim.groups import GroupValues, ParamGroups
from onecycle.optim.loss_module import loss_module
from onecycle.parallel.joining import Device, Parallel
from onecycle.parallel.together import failing_together
from onecycle.processes import is_follower
from onecycle.range_test.asked import Asked, as_rules
from onecycle.range_test.knee import knee
from onecycle.range_test.result import LRFindResult
from onecycle.range_test.rules import valley
from onecycle.range_test.sweeps import RangeTests, one_varied, range_tests
from onecycle.record.metrics import as_metrics
from onecycle.record.predictions import Predictions
from onecycle.record.weights import LossWeights, Weight
from onecycle.schedules.shapes import Schedule
from onecycle.training.checking import (
    Check,
    FirstBatch,
    check_between_updates,
    measure,
    measure_sets,
    warn_of_bad_parameters,
)
from onecycle.training.options import check_options, with_defaults
from onecycle.training.planned import PlannedLoop
from onecycle.training.predicting import predict_loader, predict_sample, valid_or
from onecycle.training.rate_finding import RateSearch, check_one_test
from onecycle.training.turns import Turns

log = logging.getLogger("onecycle")

#: The fields of a learner that each copy makes anew: they hold what cannot be pickled.
_NOT_COPIED = ("_turn", "_on", "_on_valid", "_contexts", "stepper", "dl")


class Trainer(Turns, PlannedLoop):
    """What one does with a loop: fit, find a rate, validate, predict, save; see `Learner`."""

    @says_our_keywords
    def __init__(
        self,
        dls: DataLoaders | tuple[Any, Any],
        model: nn.Module,
        loss_func: Callable[..., Tensor] | None = None,
        opt_func: OptFuncs = AdamW,
        lr: GroupValues | Default = Default.OWN,
        metrics: Sequence[Any] = (),
        cbs: Sequence[Callback] = (),
        *,
        opt: Optimizer | Sequence[Optimizer] | Mapping[str, Optimizer] | None = None,
        wd: float | None = None,
        wd_bn_bias: bool = False,
        moms: tuple[float, float, float] = (0.95, 0.85, 0.95),
        splitter: Splitter | None = None,
        n_inp: int | None = None,
        device: str | torch.device | None = None,
        seed: int | None = None,
        fast_step: bool = True,
        compile: bool | str = False,
        check: bool = True,
        loss_weight: Callable[[Any, Any], Weight] | None = None,
        parallel: Parallel | Default | None = Default.OWN,
        blocks: Sequence[str] = (),
    ) -> None:
        check_options(model, loss_func, cbs, opt, wd, moms, splitter, n_inp, seed, check)
        device = self._join_job(parallel, device, cbs, blocks)
        groups = self._split(device, model, loss_func, lr, opt, opt_func, wd, splitter, wd_bn_bias)
        self.moms, self._given_seed, self._first_batch = moms, seed, FirstBatch() if check else None
        parts = as_dataloaders(dls), model, loss_func, groups
        super().__init__(
            *parts,
            cbs=with_defaults(cbs),
            metrics=list(as_metrics(metrics).values()),
            seed=self.drawn_seed() if seed is None else seed,
            n_inp=n_inp,
            loss_weights=self._weights(loss_func, loss_weight),
            make_stepper=choose_stepper(model, groups.opt, fast_step, compile),
        )

    def _join_job(
        self,
        parallel: Parallel | Default | None,
        device: Device,
        cbs: Sequence[Callback],
        blocks: Sequence[str],
    ) -> Device:
        """Take part in the job that this process belongs to; return the device to train on."""
        device = super()._join_job(parallel, device, cbs, blocks)
        self._half = half_of(cbs, device) if self._cuts else None
        if self._cuts and self.trains_in_turns:
            raise ValueError('compute_losses is for parallel="ddp": "fsdp" trains by one loss')
        return device

    def _weights(self, loss_func: Any, given: Callable[[Any, Any], Weight] | None) -> LossWeights:
        return LossWeights(loss_func, given, type(self).compute_loss is Loop.compute_loss)

    def _split(
        self,
        device: str | torch.device | None,
        model: nn.Module,
        loss_func: Any,
        lr: GroupValues | Default,
        *how: Any,
    ) -> ParamGroups:
        """Return the parameter groups of model and loss, with their rates in force."""
        self._place(device, model, loss := loss_module(model, loss_func), how[0])
        groups = param_groups(model, loss, *how)
        self.lr = groups.own_rates() if lr is Default.OWN else groups.expand("lr", lr)
        groups.set("lr", self.lr)
        return groups

    @property
    def recorder(self) -> Recorder:
        """The recorder: ``learn.recorder.history``, ``learn.recorder.plot_loss()``."""
        return recorder_of(self)

    @says_our_keywords
    def fit(
        self,
        n_epoch: float | None,
        lr: GroupValues | Default = Default.OWN,
        wd: float | None = None,
        cbs: Sequence[Callback] | None = None,
        *,
        steps_per_epoch: int | None = None,
        max_updates: int | None = None,
        max_time: str | None = None,
        resume: str | Path | None = None,
        extend: Extend | None = None,
    ) -> None:
        """Train with a constant learning rate, or one that a callback drives.

        Args:
            n_epoch: The number of epochs, perhaps with a fraction: 0.5 is half an epoch, its first
                batches; ``None`` to stop by ``max_updates`` or ``max_time`` alone.
            lr: The learning rate; by default the learner's.
            wd: The weight decay from here on; by default unchanged.
            cbs: Callbacks for this fit only.
            steps_per_epoch: The batches of an epoch, where the loader has no length or more. A
                stream goes on where the epoch before ended: see `onecycle.data.streams.Stream`.
            max_updates: The optimizer updates after which the fit ends.
            max_time: The time that the fit may take, such as ``"3h"``, ``"90 minutes"`` or
                ``"1h30m"``. After a few updates it decides once how many updates there are, at
                most those that the other limits leave, and the schedules run over them: see
                `onecycle.callbacks.max_time.MaxTime`.
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
            CheckpointError: If no checkpoint can be read, or the model is another one; if another
                process writes its checkpoints to the same folder.

        Example:
            >>> from onecycle.testing import toy_learner
            >>> learn = toy_learner(n_batches=4)
            >>> learn.fit(2, lr=0.05)
            >>> learn.recorder.history["lr"].values.tolist() == [0.05] * 8
            True
            >>> learn.fit(0.5)  # the first half of an epoch
            >>> learn.fit(None, max_updates=3)
            >>> learn.total_updates
            13
        """
        limit = [] if max_time is None else [MaxTime(check_duration("max_time", max_time))]
        if limit and n_epoch is None and max_updates is None:
            max_updates = UNDECIDED
        n_epoch = check_budget(n_epoch, steps_per_epoch, max_updates)
        own = checked_callbacks(cbs)
        resumed = resuming(resume, extend, self._given_seed, self.processes)
        rates = self.groups.expand("lr", self.lr if lr is Default.OWN else lr)
        folders = [cb.folder for cb in [*self.cbs, *(cbs or ())] if isinstance(cb, Checkpoint)]
        with (
            failing_together(self.processes),
            locked(folders),
            self.batches_as(state_of(resumed)),
            whole_or_undone(self, resumed),
            self.groups.lent("momentum"),
        ):
            if wd is not None:
                self.groups.set("weight_decay", check_not_negative("wd", wd))
            self.groups.set("lr", rates)
            warn_of_left_out(self.dls.train, steps_per_epoch)
            if not resumed:
                warn_of_bad_parameters(self)
            self.run_fit(
                n_epoch,
                cbs=[*own, *self._looks(resumed), *limit, *resumed],
                steps_per_epoch=steps_per_epoch,
                max_updates=max_updates,
            )

    def _looks(self, resumed: Sequence[Callback]) -> list[Callback]:
        """Return what looks at the first batch of a learner, where there is no such batch yet."""
        look = self._first_batch
        return [] if look is None or look.check is not None or resumed else [look]

    @says_our_keywords
    def fit_one_cycle(
        self,
        n_epoch: float | None,
        lr_max: GroupValues | Default = Default.OWN,
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
        max_time: str | None = None,
        resume: str | Path | None = None,
        extend: Extend | None = None,
    ) -> None:
        """Train by the 1cycle policy: the rate rises and falls, momentum the other way.

        Args:
            n_epoch: The number of epochs, perhaps with a fraction: 0.5 is half an epoch, its first
                batches; ``None`` to stop by ``max_updates`` or ``max_time`` alone.
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
            steps_per_epoch: The batches of an epoch, as in `fit`.
            max_updates: The optimizer updates after which the fit ends.
            max_time: The time that the fit may take, such as ``"3h"``, ``"90 minutes"`` or
                ``"1h30m"``. After a few updates it decides once how many updates there are, at
                most those that the other limits leave, and the schedules run over them: see
                `onecycle.callbacks.max_time.MaxTime`.
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
        own = checked_callbacks(cbs)
        peaks = self.groups.expand("lr_max", self.lr if lr_max is Default.OWN else lr_max)
        cycle = OneCycleSchedule(peaks, div, div_final, pct_start, policy=policy)
        both = [cycle, *self._momentum_cycle(moms, pct_start, policy)]
        self.fit(
            n_epoch,
            wd=wd,
            cbs=[*both, *own],
            steps_per_epoch=steps_per_epoch,
            max_updates=max_updates,
            max_time=max_time,
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
        if self.groups.has_momentum():
            self.groups.put_back("momentum")
        if moms is None and not self.groups.momentum_is_on():
            log.warning(
                "%s %s: only the learning rate is cycled (moms=False says so without a word)",
                type(self.opt).__name__,
                "has momentum 0" if self.groups.has_momentum() else "has no momentum",
            )
            return []
        shape: Policy = "cosine" if isinstance(policy, Schedule) else policy
        return [MomentumCycler(self.moms if moms is None else moms, pct_start, policy=shape)]

    @overload
    def lr_find(
        self,
        start_lr: float = ...,
        end_lr: float = ...,
        num_it: int = ...,
        stop_div: bool = ...,
        show_plot: bool = ...,
        suggest_funcs: Asked = ...,
        *,
        linear: bool = ...,
        valid: bool = ...,
        confirm: int = ...,
    ) -> LRFindResult: ...

    @overload
    def lr_find(
        self,
        start_lr: float = ...,
        end_lr: float = ...,
        num_it: int = ...,
        stop_div: bool = ...,
        show_plot: bool = ...,
        suggest_funcs: Asked = ...,
        *,
        linear: bool = ...,
        valid: bool = ...,
        wds: Sequence[float] | None = ...,
        moms: Sequence[float] | None = ...,
        batch_sizes: Sequence[int] | None = ...,
    ) -> RangeTests: ...

    @says_our_keywords
    def lr_find(
        self,
        start_lr: float = 1e-7,
        end_lr: float = 10.0,
        num_it: int = 100,
        stop_div: bool = True,
        show_plot: bool = True,
        suggest_funcs: Asked = (knee, valley),
        *,
        linear: bool = False,
        valid: bool = False,
        wds: Sequence[float] | None = None,
        moms: Sequence[float] | None = None,
        batch_sizes: Sequence[int] | None = None,
        confirm: int = 0,
    ) -> LRFindResult | RangeTests:
        """Run the learning-rate range test: the rate rises from batch to batch until the loss does.

        It leaves nothing behind: afterwards, also after an error or Ctrl-C, everything that
        training changes is bit for bit as before. With several parameter groups the rate is that
        of the last one, and the others keep their ratios to it.

        Where the test shows a valley, that is all. Where it does not (the fall is small
        beside the noise, or the loss breaks before it falls, or still falls at the last rate), two
        cycles of 150 updates decide in the place of the rule `knee`: to the peak that the breaking
        rate and the optimizer make likely, and to four times as much, or where that one trains
        nothing a quarter; the better of them, or of equals their middle. A line of the result says
        what was done, and how many updates it took: by default at most 400. Where neither trains
        enough to be evidence, the likely peak is suggested, and the line says "unsure". Tests of
        fewer than 50 updates, linear ones, and the sweeps do without.

        Args:
            start_lr: The first rate, above 0.
            end_lr: The last rate, reached unless the test stops.
            num_it: The number of updates.
            stop_div: Stop when the smoothed loss is over four times its best. A loss that is not
                finite always stops.
            show_plot: Draw the curve with the suggestions, as ``learn.recorder.plot_lr_find()``.
            suggest_funcs: A rule or several: ``knee, minimum, valley, slide, steep``, their names,
                or functions ``(lrs, smoothed losses) -> rate``. The first gives
                ``result.suggestion``.
            linear: Let the rate rise linearly instead of exponentially.
            valid: After each update, measure loss and metrics on the next validation batch too:
                ``result.valid_losses`` and ``result.metrics``. The training losses, the
                suggestions and when to stop are the same to the bit.
            wds: Run one test for each of these weight decays.
            moms: Run one test for each of these momenta.
            batch_sizes: Run one test for each of these batch sizes of the training loader: a
                `TensorLoader`, or a DataLoader made with ``batch_size=``.
            confirm: Confirm the suggestion by cycles of three times so many updates, 50 say: to
                twice and to half the suggestion, and to a third peak, four times away, where the
                best may lie beyond them. The loss at the end of each is that over as many
                validation batches, or without a loader the mean of its last training losses. The
                suggestion then is the mean of the peaks, in log space, weighted by how little each
                gives away of what the best gained; less, by 1.6, where the lowest is the best and
                the highest trains nothing. ``result.cycles`` is the table. With 50 that takes 400
                updates, the test included, or 550. Where the test shows no valley, a third cycle
                may follow the two.

        Returns:
            Rates, losses, suggestions, and why the test stopped; of several tests a `RangeTests`,
            which has such a result for each setting and prints as a table.

        Raises:
            ValueError: If the rates do not rise; if ``valid`` is asked for without a validation
                loader; if more than one of ``wds``, ``moms`` and ``batch_sizes`` is given, or
                one of them is nothing that the optimizer or the loader can have; if ``confirm``
                is given with one of them, or is below 10 and not 0.
            RuntimeError: In a callback, between the forward and the backward pass of a batch, or
                in validation.

        Source:
            Smith, "Cyclical Learning Rates for Training Neural Networks", arXiv:1506.01186;
            the overlaid tests are those of arXiv:1803.09820; ``valid`` and ``wds`` are
            ``lr_find2`` of fastai 0.7.

        Example:
            >>> from onecycle.testing import toy_learner
            >>> learn = toy_learner(batch_size=32)
            >>> result = learn.lr_find(start_lr=1e-4, show_plot=False)
            >>> result.suggestion == result.suggestions["knee"]
            True
        """
        if self._run is not None and self.training:
            check_between_updates(self.event)
        check_flags(show_plot=show_plot)
        warn_of_bad_parameters(self)
        varied = one_varied({"weight_decay": wds, "momentum": moms, "batch_size": batch_sizes})
        check_one_test(confirm, varied)
        search = RateSearch(
            self,
            self._run_test,
            partial(LRFinder, num_it=num_it, stop_div=stop_div, linear=linear, valid=valid),
            as_rules(suggest_funcs),
            self.moms if self.groups.momentum_is_on() else None,
        )
        result = self._search(search, varied, (start_lr, end_lr), confirm)
        for callback in self.cbs:
            if isinstance(callback, Recorder):
                callback.lr_find_result = result
        if show_plot and not is_follower():
            result.plot()
        return result

    def _search(
        self,
        search: RateSearch,
        varied: tuple[str, Any] | None,
        ends: tuple[float, float],
        confirm: int,
    ) -> LRFindResult | RangeTests:
        """Make one test, or one for each setting, with a bar."""
        n = len(varied[1]) if varied is not None and isinstance(varied[1], Sequence) else 1
        with self.added_cbs(bars(self, "range test", n)):
            if varied is None:
                return search.find(*ends, confirm=confirm)
            return range_tests(self, *varied, partial(search.test, *ends))

    def _run_test(self, cbs: Sequence[Callback], n_updates: int) -> None:
        """Run updates whose effect is taken back by the caller."""
        self._run = None  # a range test may also run between two updates of a fit
        self.run_fit(None, cbs=cbs, run="range_test", max_updates=n_updates)

    @kept_grad_mode()  # copying the metrics may switch gradients off for a moment
    def validate(self, dl: Iterable[Any] | None = None) -> dict[str, float]:
        """Compute the loss and the metrics over a loader; leaves everything as it was.

        Args:
            dl: By default the validation loader, or each of several.

        Returns:
            ``"valid_loss"`` and each metric by name, as in the record.
        """
        warn_of_bad_parameters(self)
        loader = valid_or(self, dl)
        return measure_sets(self) if dl is None else measure(self, loader)

    def check(self, batches: int = 1) -> Check:
        """Try a few batches of each loader, optimizer included, and say what looks wrong.

        The batches go through model, loss, metrics, backward pass and optimizer as in a fit, so
        that what cannot work fails here, in seconds. Nothing is left behind, as by `lr_find`. A
        look at the first batch of a learner's first fit is taken by itself, before its first
        update, and what it finds is logged: ``Learner(check=False)`` leaves that out.

        Args:
            batches: The updates of training, and the batches of validation.

        Returns:
            Loss, metrics and findings; prints as a list.

        Raises:
            Exception: Whatever model, loss, metric or optimizer raise.

        Example:
            >>> from onecycle.testing import toy_learner
            >>> toy_learner().check().findings
            ()
        """
        look = FirstBatch(check_count("batches", batches))
        if self._run is not None and self.training:
            check_between_updates(self.event)
        with preserved(self):
            self._run_test([look], batches)
        if look.check is None:
            raise RuntimeError("every batch was cancelled by a callback: nothing to look at")
        return look.check

    @says_our_keywords
    def get_preds(
        self,
        dl: Iterable[Any] | None = None,
        *,
        with_loss: bool = False,
        with_inputs: bool = False,
        inference_mode: bool = False,
    ) -> Predictions:
        """Predict a whole loader; leaves everything as it was.

        What the batches gave is joined to one value with an entry for each sample. Tensors are
        concatenated. Where they differ in more than their first dimension, as those of batches
        padded to different lengths, they become a list of one tensor for each sample, which
        ``torch.nn.utils.rnn.pad_sequence`` pads. Lists of one item for each sample (texts, ids,
        what a detector found) become one list.

        Of a model that returns a dict or a dataclass, as model libraries do, the predictions are a
        dict of the tensors, lists and dicts in it; not the loss of the batch, and no tuples and
        objects, in which caches and the states of layers are. Of a batch that is a dict, the
        targets are the keys which the model's ``forward`` does not take, and those that are called
        ``y`` or have "label" or "target" in their name; where there are none of these, the whole.
        Of a batch that is another object they are its ``labels``, ``targets`` or ``y``.

        Args:
            dl: By default the validation loader.
            with_loss: Compute ``losses`` too, that of each sample as of a batch of it alone: the
                loss function is called once for each sample.
            with_inputs: Keep ``inputs`` too, as the model was given them; of a dict, all that are
                no targets.
            inference_mode: Use ``torch.inference_mode``: see `Loop.infer`.

        Returns:
            Predictions and targets on the CPU; they unpack as ``preds, targets``, or with the
            losses as ``preds, targets, losses``.

        Raises:
            ValueError: If there is no loader, the batches cannot be joined, or ``with_loss`` is
                asked for where a batch cannot be taken apart into samples, or where the model
                returns its loss.

        Example:
            >>> from onecycle.testing import toy_learner
            >>> learn = toy_learner()
            >>> preds, targets = learn.get_preds()
            >>> preds.shape, targets.shape
            (torch.Size([64, 1]), torch.Size([64, 1]))
            >>> learn.get_preds(with_loss=True).losses.shape
            torch.Size([64])
        """
        return predict_loader(
            self,
            valid_or(self, dl),
            with_loss=with_loss,
            with_inputs=with_inputs,
            inference_mode=inference_mode,
        )

    def predict(self, x: Any) -> Any:
        """Predict one sample; leaves everything as it was. Several threads may call it at once.

        Args:
            x: The input of one sample, without a batch dimension: a tensor, a tuple of tensors
                for a model of several inputs, or a dict; numbers, arrays and texts among them
                become a batch of one as by a DataLoader.

        Returns:
            What the model says of it, on the CPU, without a batch dimension; of a dict what
            `get_preds` keeps of it.

        Raises:
            TypeError: If ``x`` is an object of another kind, of which only you know how to make a
                batch: ``get_preds([batch])``.
            ValueError: If the model returns no row for the sample, or ``n_inp`` inputs are
                expected and there are others.
            RuntimeError: If a fit is running in another thread.

        Example:
            >>> from onecycle.testing import toy_learner
            >>> toy_learner().predict(torch.zeros(4)).shape
            torch.Size([1])
        """
        return predict_sample(self, x)

    def _land(self, updates: int, reason: str | None) -> None:
        land_running(self, updates, reason)

    @contextmanager
    def removed_cbs(self, *kinds: type[Callback] | Callback) -> Iterator[None]:
        """Run a block without some callbacks: given as objects or as types."""
        for kind in kinds:
            is_kind = isinstance(kind, type) and issubclass(kind, Callback)
            if not is_kind and not isinstance(kind, Callback):
                raise TypeError(f"kinds must be callbacks, or classes of them; got {shown(kind)}")
        types = tuple(kind for kind in kinds if isinstance(kind, type))
        before = self.cbs
        try:
            self.cbs = [cb for cb in before if not isinstance(cb, types) and cb not in kinds]
            yield
        finally:
            surely(lambda: vars(self).update(cbs=before))

    @contextmanager
    def no_bar(self) -> Iterator[None]:
        """Run a block without progress bars and without the table of epochs."""
        with self.removed_cbs(Progress):
            yield

    def save(self, path: str | Path) -> None:
        """Save model, loss function and optimizer to a file, which is whole or not there.

        Of several processes the first one writes, and the others wait for it. Where each has a
        part of the model, every process must call it: the first one gathers the whole, on the CPU.

        Of a loss function is saved what is trained or counted in it. An optimizer that has
        training and evaluation mode is saved in evaluation mode, and so are the weights; the
        learner is left as it was.

        With the optimizer goes whatever it trains beside them.

        Args:
            path: Where to write; a file that is there is replaced.

        Raises:
            TypeError: If the model or the optimizer has state that could not be read again.
        """
        self.write_once(partial(save_learner, self, check_path("path", path)))

    @says_our_keywords
    def load(self, path: str | Path, *, with_opt: bool = True) -> None:
        """Load what `save` wrote; runs no code from the file.

        Args:
            path: A file that `save` wrote.
            with_opt: Load the optimizer's state too, with what it trains beside the model. Without
                it, a loss function that is another one than that of the file is left as it is,
                and a warning says so.

        Raises:
            CheckpointError: If the file is none of ours, or does not fit this learner, which is
                then unchanged.
            OSError: If the file cannot be opened.
        """
        check_flag("with_opt", with_opt)
        load_learner(self, check_path("path", path), with_opt=with_opt)

    def __repr__(self) -> str:
        """Show what is trained, by what, and how far."""
        loss = getattr(self.loss_func, "__name__", type(self.loss_func).__name__)
        kinds = f"{type(self.model).__name__}, {type(self.opt).__name__}, loss_func={loss}"
        return f"{type(self).__name__}({kinds}: {self.total_updates} updates done)"

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy is made of, by ``copy.deepcopy`` and ``pickle``."""
        self.require_whole("a copy of a learner")
        if self._run is not None:
            raise RuntimeError(
                f"a learner cannot be copied while a {self._run} is running: copy it before or "
                "afterwards, or let a Checkpoint keep the state of the fit"
            )
        return {name: part for name, part in vars(self).items() if name not in _NOT_COPIED}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Make a copy whole."""
        vars(self).update(state)
        self._turn, self.dl = RLock(), self.dls.train
        if isinstance(self.make_stepper, CompiledSteps):
            self.make_stepper.compile_again(self.model)
        self.stepper = self.make_stepper(self.opt)
