"""`Learner`: the verbs that a person calls, each written once.

Here are the recipes, freezing, landing, the studies, and what shows: the loop, the data, what the
model makes of them. Inherited from
`onecycle.training.trainer.Trainer`: ``fit``, ``fit_one_cycle``, ``lr_find``, ``validate``,
``check``, ``get_preds``, ``predict``, ``save``, ``load``, ``recorder``, ``removed_cbs`` and
``no_bar``; from `onecycle.core.loop.Loop`, which runs them all: ``added_cbs``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onecycle.arguments import (
    Default,
    check_count,
    check_divided,
    check_epochs,
    check_flag,
    check_fraction,
    check_list,
    check_path,
    check_positive,
)
from onecycle.callbacks.landing import is_landing
from onecycle.callbacks.monitor import Mode
from onecycle.callbacks.one_cycle import OneCycleSchedule
from onecycle.callbacks.param_scheduler import ParamScheduler, PlannedScheduler
from onecycle.callbacks.precision import MixedPrecision
from onecycle.checkpoints.fit_plan import Extend
from onecycle.core.callback import Callback
from onecycle.core.checks import checked_callbacks
from onecycle.elsewhere import (
    NotHere,
    SaysOurNames,
    explain_foreign_name,
    says_our_keywords,
)
from onecycle.insight.confusion import ConfusionMatrix, confusion_matrix
from onecycle.insight.looking import show_batch, show_results
from onecycle.insight.losses import TopLosses, top_losses
from onecycle.insight.shown import Decode
from onecycle.optim.groups import GroupValues, check_value
from onecycle.processes import is_follower
from onecycle.record.predictions import Predictions
from onecycle.schedules.policies import clr_beta, clr_beta_momentum, flat_cos, sgdr
from onecycle.schedules.shapes import Schedule
from onecycle.studies.batch_size import find_batch_size
from onecycle.studies.comparison import NAMES, Compared, Comparison, compare
from onecycle.studies.diagnosis import Diagnosis, diagnose
from onecycle.studies.regularization import RegularizationReport, regularization_report
from onecycle.studies.trials import Init
from onecycle.training.drawing import draw_loop
from onecycle.training.exporting import Reads, export
from onecycle.training.fine_tuning import FineTuneStage, found_stage
from onecycle.training.freezing import freeze, freeze_to, require_body_and_head, unfreeze
from onecycle.training.landing import land
from onecycle.training.summary import Summary, summarize
from onecycle.training.trainer import Trainer
from onecycle.training.views import Transform, predict_views

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Learner(Trainer, SaysOurNames):
    """Train a model: it owns the loaders, the model, the loss, the optimizer and the loop.

    What a callback reads on a learner is listed at `onecycle.core.state.LoopState`.

    A batch is anything that the model can be called with; an object of any class is moved to the
    device by its own ``to(device)``, where it has one:

    - ``(xb, yb)``, a tuple or list, calls ``model(xb)`` and ``loss_func(pred, yb)``. An ``xb`` that
      is a tuple or list is several arguments; a ``yb`` that is one is one argument, a list.
    - A longer one, ``(x1, x2, yb)``, calls ``model(x1, x2)``. With ``n_inp=1`` there are several
      targets, each an argument of its own, ``loss_func(pred, y1, y2)``.
    - A dict calls ``model(**batch)``, without the keys that its ``forward`` does not take, and
      ``loss_func(pred, batch)``.
    - All else is handed over whole, ``model(batch)`` and ``loss_func(pred, batch)``: a
      ``PackedSequence``, a batch of graphs, a named tuple, an object of your own. So it is if it is
      the ``xb`` or ``yb`` of a pair.

    Metrics are called as the loss function is. For what computes its loss in another way override
    ``predict_batch(self, batch)`` and ``compute_loss(self, pred, batch)``. A learner can be copied
    by ``copy.deepcopy``, data included, and pickled, between fits; both train on apart. Where
    several optimizers take turns, each by a loss of its own, as in a GAN, override
    ``compute_losses(self, batch)``: see `onecycle.training.turns.Turns`.

    Args:
        dls: `DataLoaders`, or a pair ``(train, valid)`` of iterables of batches; ``valid`` may be
            ``None``.
        model: It is moved to ``device``. Parts that are in evaluation mode when a training pass
            begins, while the model itself is not, stay in it, and a warning says so.
        loss_func: Called with ``(pred, yb)``, returns a scalar. ``None`` for a model that returns
            its loss: as ``pred.loss``, ``pred["loss"]``, or as the prediction itself. One that is
            a module, a method of one, or a ``functools.partial`` of either, is moved with the
            model, validates in evaluation mode, and is saved and loaded; its parameters train in
            the last parameter group. `EMA` and `SWA` average the model alone.
        opt_func: An optimizer class, or a callable ``(params, lr=...)``. Made fused where it can
            be. Or several by name, such as ``{"matrices": Muon, "rest": AdamW}``, with a
            ``splitter`` that returns a dict with the parameters of each: `muon_groups`.
        lr: The learning rate: one number, one for each parameter group, or a slice. By default
            1e-3, or with ``opt=`` what it has.
        metrics: Functions ``(pred, yb) -> scalar``, or objects with reset, update and compute. What
            gives several values is recorded by their names: see `named_numbers`.
        cbs: Callbacks for every fit, besides the `Recorder` and the `Progress` that each learner
            has.
        opt: An optimizer that exists, instead of ``opt_func``, or several in a list, or in a dict
            by name, each with parameters of its own; used as it is. One that has methods ``train``
            and ``eval``, as those called schedule-free, is put in the mode of each pass, and in
            evaluation mode after a fit.
        wd: The weight decay; ``None`` for the optimizer's own.
        wd_bn_bias: Whether norms and biases decay too.
        moms: Momentum at the start, the peak and the end of a cycle.
        splitter: Returns the parameter groups of the model, such as `head_splitter`; these are
            meant by rates for each group, by `freeze`, and in the record. With ``opt=``, each of
            its ``param_groups`` must lie in one of them. Without a splitter there is one group; or,
            where the optimizer has several of its own, they are the groups, of which those that
            differ in weight decay alone are one. An ``lr_scale`` in them multiplies their rate.
        n_inp: How many parts of a longer batch are inputs; by default all but the last.
        device: By default the accelerator if there is one, else the CPU.
        seed: Of the order of the data; drawn from torch by default. Weights and dropout come from
            torch's own generator: ``torch.manual_seed``.
        fast_step: Call the optimizer's fused kernel directly where that gives the same bits and
            nobody looks on, with less Python around it: see `FastStepper`. `summary` says which
            step is taken, and why.
        compile: ``True``, or a mode of ``torch.compile`` such as ``"max-autotune"``: compile the
            model, and the step of SGD, Adam or AdamW, such that a schedule recompiles nothing:
            see `CompiledSteps`. The first batches take seconds to minutes; a batch of another
            size, such as the last one of an epoch, has the model compiled once more. Results
            agree with those of the plain learner to rounding.
        check: Look at the first batch of the first fit before its first update, and at one batch
            of validation, and log what looks wrong: see `check`.
        loss_weight: ``(pred, batch) -> number``, or a tensor of one: what the loss of a batch is a
            mean over, such as `token_weight`, where that is neither samples nor what
            `loss_weight` sees by itself. A method of a subclass does the same.
        parallel: How the processes that a launcher such as ``torchrun`` started train. ``"ddp"``,
            the default there: one model together, each update over the batches of all, with the
            same answer for any number of processes; see `onecycle.parallel`. ``"fsdp"``: the same,
            where each has a part of every parameter, for a model that one device cannot hold.
            ``None``: each its own. In one process it changes nothing.
        blocks: With ``"fsdp"``, names of the parts that are gathered and let go for themselves, as
            in ``model.named_modules()``, where ``*`` stands for any part: ``["layers.*"]``. By
            default the children with most parameters: see `onecycle.parallel.blocks`.

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

    stop_training, should_stop = NotHere(), NotHere()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in vars(cls):
            if here := explain_foreign_name(name):
                raise TypeError(
                    f"{cls.__name__} defines {name!r}, a name of another library, which nothing "
                    f"would call: {here}"
                )

    @says_our_keywords
    def fit_clr_beta(
        self,
        n_epoch: float,
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
            n_epoch: The number of epochs, perhaps with a fraction.
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
        if len(check_list("use_clr_beta", use_clr_beta, "2 or 4 numbers")) not in (2, 4):
            raise ValueError(
                "use_clr_beta: expected (div, pct) or (div, pct, max_mom, min_mom), with pct in "
                f"percent; got {use_clr_beta!r}"
            )
        div, pct, *moms = use_clr_beta
        peaks = self.groups.expand("lr", lr)

        def plan(n: int) -> dict[str, Schedule | Sequence[Schedule | None]]:
            rates = [clr_beta(n, lr_max=peak, div=div, pct=pct) for peak in peaks]
            if not moms:
                return {"lr": rates}
            momentum = clr_beta_momentum(n, pct=pct, max_mom=moms[0], min_mom=moms[1])
            return {"lr": rates, "momentum": momentum}

        cycle = PlannedScheduler(plan)
        self._fit_by(cycle, n_epoch, wd=wd, cbs=cbs, resume=resume, extend=extend)

    @says_our_keywords
    def fit_flat_cos(
        self,
        n_epoch: float,
        lr: GroupValues | Default = Default.OWN,
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
            n_epoch: The number of epochs, perhaps with a fraction.
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
        rates = self.groups.expand("lr", self.lr if lr is Default.OWN else lr)
        each = [flat_cos(rate, div_final=div_final, pct_start=pct_start) for rate in rates]
        flat = ParamScheduler({"lr": each})
        self._fit_by(flat, n_epoch, wd=wd, cbs=cbs, resume=resume, extend=extend)

    @says_our_keywords
    def fit_sgdr(
        self,
        n_cycles: int,
        cycle_len: float,
        lr_max: GroupValues | Default = Default.OWN,
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
            cycle_len: The epochs of the first cycle, perhaps with a fraction.
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
        check_count("n_cycles", n_cycles)
        check_epochs("cycle_len", cycle_len)
        check_count("cycle_mult", cycle_mult)
        peaks = self.groups.expand("lr_max", self.lr if lr_max is Default.OWN else lr_max)

        def plan(n: int) -> dict[str, Sequence[Schedule | None]]:
            options = {"n_cycles": n_cycles, "cycle_mult": cycle_mult}
            return {"lr": [sgdr(n, lr_max=peak, **options) for peak in peaks]}

        n_epoch = sum(cycle_len * cycle_mult**k for k in range(n_cycles))
        cycles = PlannedScheduler(plan)
        self._fit_by(cycles, n_epoch, wd=wd, cbs=cbs, resume=resume, extend=extend)

    def _fit_by(
        self,
        scheduler: ParamScheduler,
        n_epoch: float,
        *,
        wd: float | None,
        cbs: Sequence[Callback] | None,
        resume: str | Path | None,
        extend: Extend | None,
    ) -> None:
        own = checked_callbacks(cbs)
        self.fit(n_epoch, wd=wd, cbs=[scheduler, *own], resume=resume, extend=extend)

    @says_our_keywords
    def fine_tune(
        self,
        epochs: float,
        base_lr: float = 2e-3,
        freeze_epochs: float = 1,
        lr_mult: float = 100,
        pct_start: float = 0.3,
        div: float = 5.0,
        *,
        wd: float | None = None,
        cbs: Sequence[Callback] | None = None,
        resume: str | Path | None = None,
    ) -> None:
        """Train the last parameter group of a pretrained model, then all of them.

        First one cycle with all groups frozen but the last, as `freeze` does; then one with all
        of them, at half the rate, and smaller rates for the earlier groups. What was frozen by hand
        stays so. There must be two groups or more: see `head_splitter`. These are two fits; a
        `Checkpoint` among ``cbs`` serves both of them, with one folder.

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
            resume: As in `fit`: the stage that the checkpoint was taken in goes on, and the next
                one follows.

        Raises:
            ValueError, TypeError: For what cannot work, before the first batch.
            CheckpointError: If no checkpoint can be read, or the model is another one.

        Example:
            >>> from onecycle.testing import toy_learner
            >>> def body_and_head(model):
            ...     return [model[0].parameters(), model[2].parameters()]
            >>> learn = toy_learner(splitter=body_and_head)
            >>> learn.fine_tune(2, 0.1)
            >>> learn.total_epochs
            3
        """
        check_epochs("epochs", epochs)
        if not isinstance(freeze_epochs, float) or freeze_epochs:
            check_epochs("freeze_epochs", freeze_epochs, least=0)
        check_positive("div", div)
        check_fraction("pct_start", pct_start)
        half = check_positive("base_lr", check_value("base_lr", base_lr)) / 2
        rates = slice(check_divided(half, "lr_mult", lr_mult), half)
        OneCycleSchedule(rates, div, pct_start=pct_start)  # refuses before the first stage has run
        checked_callbacks(cbs)
        require_body_and_head(self, "fine_tune")
        stage, path = found_stage(resume)
        self.freeze()
        if freeze_epochs and stage == 1:
            both = [FineTuneStage(1), *(cbs or ())]
            self.fit_one_cycle(
                freeze_epochs, slice(base_lr), pct_start=0.99, wd=wd, cbs=both, resume=path
            )
            path = None  # the second stage begins where this one has ended
        self.freeze_to(0)
        both = [FineTuneStage(2), *(cbs or ())]
        self.fit_one_cycle(epochs, rates, div, pct_start=pct_start, wd=wd, cbs=both, resume=path)

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
        return is_landing(self)

    def freeze(self, *, train_bn: bool = True) -> None:
        """Let only the last of the splitter's groups train, until `unfreeze`.

        Args:
            train_bn: As in `freeze_to`.

        Raises:
            ValueError: If there is one group, with which nothing would be frozen.
        """
        freeze(self, train_bn=train_bn)

    def freeze_to(self, n: int, *, train_bn: bool = True) -> None:
        """Let only the splitter's groups from the n-th on train; sets ``requires_grad``.

        What was frozen by hand, with ``requires_grad_(False)``, stays frozen, and a warning says
        so; `unfreeze` lets it train.

        Args:
            n: The first group that trains, from 0; a negative one counts from the end.
            train_bn: Let the normalization layers of frozen groups train all the same, and their
                running statistics follow the data. ``False`` keeps both as they are: such a layer
                stays in evaluation mode in every pass, until the next call of ``freeze_to``.

        Raises:
            ValueError: If there is no such group, or one group is to be frozen up to itself;
                shows the groups.

        Example:
            >>> from onecycle.testing import toy_learner
            >>> def body_and_head(model):
            ...     return [model[0].parameters(), model[2].parameters()]
            >>> learn = toy_learner(splitter=body_and_head)
            >>> learn.freeze_to(-1)
            >>> [p.requires_grad for p in learn.model.parameters()]
            [False, False, True, True]
        """
        freeze_to(self, n, train_bn=train_bn)

    def unfreeze(self) -> None:
        """Let all parameters train, those that were frozen by hand too; sets ``requires_grad``."""
        unfreeze(self)

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
        them (logits, if it does), so that losses and metrics take them. Predictions that are maps
        of the images' height and width (segmentation) are turned back first, and each pixel is
        averaged over the views that show it. On a coarser or finer grid only mirror images can be
        turned back, and the shifts are left out, which a log message says.

        Args:
            dl: By default the validation loader.
            transforms: Functions that return a view of ``xb``, such as
                ``lambda xb: xb.flip(-1)``; for predictions that are maps pairs of one and of a
                function that turns the predictions of a batch back, such as
                ``(lambda xb: xb.flip(-1), lambda pred: pred.flip(-1))``. By default, for images:
                the mirror image, and two shifts by a pixel of image and mirror image.
            n: Instead of ``transforms``, predict so many times with the training augmentations
                among the learner's callbacks, `RandomFlip` and the like, which draw anew each
                time. After the same ``torch.manual_seed`` they draw the same.
            beta: The share of the prediction without a view, in [0, 1]; the mean over the views
                has the rest.

        Returns:
            As `get_preds`.

        Raises:
            TypeError, ValueError: If predictions are no tensor of floats, inputs no images where
                views of images are asked for, predictions or targets what may say where in an
                image something is (boxes, key points) and ``transforms`` are no pairs, or the
                loader gives another order each time.

        Example:
            >>> from onecycle.testing import toy_learner
            >>> learn = toy_learner()
            >>> learn.tta(transforms=[lambda xb: 2 * xb, lambda xb: xb / 2]).preds.shape
            torch.Size([64, 1])
        """
        return predict_views(self, dl, transforms, n=n, beta=beta)

    def show_batch(
        self, n: int = 9, *, decode: Decode | None = None, ax: Axes | None = None
    ) -> Axes:
        """Draw samples of the next training batch as the model will see them, with their targets.

        Augmentation and mixing of images take part. Leaves everything as it was.

        Images are tensors of 1 or 3 channels; how they were normalised is taken back where a
        loader says it (those of ``onecycle.vision``, and torchvision's ``Normalize`` at the end of
        a data set's transforms), and else, where they are not in [0, 1], the lowest value is black
        and the highest white. Vectors, tuples and dicts are rows of a table, and texts its cells.
        Classes go by their names where ``DataLoaders(classes=...)``, or the ``classes`` of a data
        set, have them.

        Args:
            n: How many samples at most.
            decode: Makes of the input of one sample what is shown, such as
                ``tokenizer.decode``: a text, an image, or a dict of the columns of a table.
            ax: Where to draw; by default a new figure.

        Raises:
            TypeError: If the inputs cannot be shown as they are, and there is no ``decode``.

        Example:
            >>> from onecycle.testing import toy_learner
            >>> ax = toy_learner().show_batch(2)
            >>> [text.get_text() for text in ax.texts[:5]]
            ['x0', 'x1', 'x2', 'x3', 'target']
        """
        return show_batch(self, self._run_test, n, decode=decode, ax=ax)

    def show_results(
        self,
        n: int = 9,
        dl: Iterable[Any] | None = None,
        *,
        decode: Decode | None = None,
        ax: Axes | None = None,
    ) -> Axes:
        """Draw samples with their targets and what the model says of them.

        What it says of a class index is the class of the highest score; a wrong one is bold, and
        an image of it framed. Leaves everything as it was.

        Args:
            n: How many samples at most, from the beginning of the loader.
            dl: By default the validation loader.
            decode: As in `show_batch`.
            ax: Where to draw; by default a new figure.

        Raises:
            TypeError: If the inputs cannot be shown as they are, and there is no ``decode``.
            ValueError: If there is no loader.

        Example:
            >>> from onecycle.testing import toy_learner
            >>> ax = toy_learner().show_results(3)
            >>> [text.get_text() for text in ax.texts[4:6]]
            ['target', 'prediction']
        """
        return show_results(self, n, dl, decode=decode, ax=ax)

    def top_losses(self, k: int = 9, dl: Iterable[Any] | None = None) -> TopLosses:
        """Find the samples that the model is most wrong about; leaves everything as it was.

        The loss of each sample is that of a batch of it alone, as in `get_preds`: of a mean that
        is weighted by class, the weight cancels there. A sample of which the loss counts nothing,
        as of a target that is ``ignore_index``, is left out. Only the inputs of the ``k`` samples
        are kept.

        Args:
            k: How many samples at most.
            dl: By default the validation loader.

        Returns:
            The samples, the highest loss first (NaN before all); it prints as a table, and has a
            ``plot``.

        Raises:
            ValueError: If there is no loader, or the loss of one sample cannot be taken.
        """
        return top_losses(self, k, dl)

    def confusion_matrix(
        self, dl: Iterable[Any] | None = None, *, threshold: float | None = None
    ) -> ConfusionMatrix:
        """Count which classes the model takes for which; leaves everything as it was.

        Args:
            dl: By default the validation loader.
            threshold: For yes-or-no targets with one score: a score above it says yes, 0 for
                logits, 0.5 for probabilities.

        Returns:
            The counts with the names of the classes; it prints as a table, and has a ``plot`` and
            ``most_confused()``. Targets below 0, and those that torch's losses of classes have as
            ``ignore_index``, are not counted.

        Raises:
            TypeError, ValueError: If predictions are no scores of classes, or one is NaN; if
                targets are no class indices.

        Example:
            >>> import torch
            >>> from onecycle import Learner, TensorLoader
            >>> x, y = torch.eye(3), torch.tensor([0, 1, 1])
            >>> model = torch.nn.Linear(3, 3, bias=False)
            >>> _ = torch.nn.init.eye_(model.weight)
            >>> loader = TensorLoader(x, y)
            >>> learn = Learner((loader, loader), model, torch.nn.functional.cross_entropy,
            ...                 device="cpu")
            >>> learn.confusion_matrix()
               0  1  2
            0  1  0  0
            1  0  1  1
            2  0  0  0
            accuracy 0.6667 of 3 targets; rows are actual, columns predicted
        """
        return confusion_matrix(self, dl, threshold)

    def export(self, path: str | Path, *, reads: Reads = "auto") -> None:
        """Write what is needed to predict to one file, for `load_predictor`.

        The file has the model, as the list of torch's operators that ``torch.export`` finds in it,
        and its weights; of loaders of `onecycle.vision` what was done to an image file, and the
        names of the classes; and how predictions read. The operators were tried, and give the same
        bits as the model. Where there is no such list (models whose course depends on values, or
        that take no tensors), a warning says why, and the file has the weights alone.

        It is the model in evaluation mode, without callbacks: predictions of a learner with
        `MixedPrecision` differ, which a warning says. Batches may be of any size, and samples of
        the size of those in the validation loader.

        A name that ends in ``.onnx`` gets an ONNX file instead, written by torch's own exporter and
        compared with the model before it is kept, for programs without torch. It takes what the
        model takes; ``classes``, ``reads`` and ``image`` stand as JSON in its metadata.
        `load_predictor` does not read it. It needs ``pip install 'onecycle[onnx]'``.

        Args:
            path: Where to write; a file that is there is replaced.
            reads: How predictions become probabilities: ``"softmax"``, ``"sigmoid"``, ``"exp"`` or
                ``"values"``, as they are. By default as torch's losses of classes say it, and
                ``"values"`` for other losses.

        Raises:
            TypeError: If the model has state that could not be read again.
            ImportError: For an ONNX file without its packages, with the command.
            ValueError: If a model cannot be written as ONNX, or would give other numbers there.

        Example:
            >>> import tempfile
            >>> from onecycle import load_predictor
            >>> from onecycle.testing import toy_learner
            >>> path = Path(tempfile.mkdtemp()) / "toy.onecycle"
            >>> toy_learner().export(path)
            >>> load_predictor(path)
            Predictor(reads='values', device='cpu')
        """
        self.require_whole("export")
        self.write_once(partial(export, self, check_path("path", path), reads))

    def to_fp16(self) -> Learner:
        """Train and predict in mixed precision from now on.

        `MixedPrecision` joins the learner's callbacks, unless one is among them, and takes the
        dtype that suits the device: not always fp16, and on a CPU without instructions for bf16
        float32.

        Returns:
            The learner itself.

        Example:
            >>> from onecycle.testing import toy_learner
            >>> type(toy_learner().to_fp16().cbs[-1]).__name__
            'MixedPrecision'
        """
        if not any(isinstance(each, MixedPrecision) for each in self.cbs):
            self.cbs.append(MixedPrecision())
        return self

    def summary(self) -> Summary:
        """Describe the model layer by layer, the groups and the optimizer; prints as a table."""
        self.require_whole("summary")
        return summarize(self)

    def show_training_loop(self) -> None:
        """Print the loop with the callbacks of this learner at their events."""
        if not is_follower():
            print(draw_loop(self.cbs))

    @says_our_keywords
    def compare(
        self,
        n_epoch: float,
        lr: GroupValues | Default = Default.OWN,
        policies: Sequence[str] | Mapping[str, Compared] = NAMES,
        seeds: Sequence[int] = (0, 1, 2),
        *,
        metric: str | None = None,
        target: float | None = None,
        mode: Mode = "auto",
        init: Init | None = None,
    ) -> Comparison:
        """Compare policies at equal budget, each from the same state and under the same seeds.

        It leaves nothing behind: afterwards, also after an error or Ctrl-C, everything that
        training changes is bit for bit as before. A run of a learner that has not been trained
        is, to the bit, the fit of a new one:

            torch.manual_seed(seed); model = init(); Learner(..., seed=seed).fit_one_cycle(...)

        What a policy does not set, such as momentum or weight decay, is what the learner has.
        Callbacks of the learner take part, but for loggers, checkpoints and the progress bar: in
        its place a line is printed for each run that is done.

        Args:
            n_epoch: The epochs of every run.
            lr: The highest rate of every policy; by default the learner's. One policy's best
                rate may be too low or too high for another: a fair comparison tries several.
            policies: Names: ``"constant"``; ``"step"``, a tenth after a half and again after
                three quarters; ``"flat_cos"`` and ``"one_cycle"``, as the verbs ``fit_flat_cos``
                and ``fit_one_cycle`` do by default. Or a dict from labels to such names, to a
                `Schedule` of the rate (of the last group, as in `fit_one_cycle`), or to a
                function ``(learn, n_epoch)`` that trains for so many epochs.
            seeds: Of the order of the data, of dropout, and of the weights that ``init`` makes.
            metric: What to judge by: a metric, or ``"valid_loss"``; by default the learner's
                first metric.
            target: Also tell when validation first reached this value.
            mode: Whether less (``"min"``) or more (``"max"``) of the metric is better. ``"auto"``:
                as the metric says it by its attribute ``higher_is_better``, or as its name is
                known for; where neither says it, the mode is asked for.
            init: Makes a model like the learner's; every run begins with the weights of a new
                one, made under its seed, and an empty optimizer state. By default with those
                that the learner has: the spread is then that of data order and dropout alone.

        Returns:
            The record of every run; prints as a table.

        Raises:
            ValueError, TypeError: For what cannot work, before the first run; and for a function
                that trains for more or fewer epochs than it was told.
            RuntimeError: If it is called by a callback, in the middle of a fit.

        Example:
            >>> from onecycle import constant
            >>> from onecycle.testing import toy_learner
            >>> learn = toy_learner(n_batches=4)
            >>> policies = {"constant 0.01": constant(0.01), "1cycle": "one_cycle"}
            >>> result = learn.compare(3, 0.1, policies, seeds=[0, 1], target=2.0)
            >>> result.epochs_to_target("1cycle"), result.epochs_to_target("constant 0.01")
            ({0: 2, 1: 2}, {0: None, 1: None})
        """
        return compare(
            self,
            n_epoch,
            lr,
            policies,
            seeds,
            metric=metric,
            target=target,
            mode=mode,
            init=init,
        )

    def find_batch_size(self, most: int | None = None) -> int:
        """Find the largest batch size whose updates the memory can hold.

        From the batch size of the training loader on, sizes are doubled until two updates run out
        of memory, or halved until two updates fit. Nothing is left behind, as by `lr_find`: give
        the size to a new loader. A copy of weights and optimizer state lies in memory meanwhile,
        so that what is found fits with room to spare. Batches of other shapes, such as longer
        texts, may need more; `MicroBatches` makes up for these in the fit.

        Args:
            most: The largest size to try; by default all samples of the training data.

        Returns:
            The size: that of the loader times or over a power of two, or the limit.

        Raises:
            TypeError, ValueError: If the training loader is of a kind whose batch size cannot be
                changed, or ``most`` is no number of samples.
            RuntimeError: In the middle of a fit.
            Exception: The error of the device, if not even one sample fits.

        Example:
            >>> from onecycle.testing import toy_learner
            >>> toy_learner(n_batches=8, batch_size=8).find_batch_size()
            64
        """
        return find_batch_size(self, most)

    def diagnose(
        self,
        end_lr: float | None = None,
        num_it: int = 200,
        *,
        wds: Sequence[float] = (0.0, 1e-4, 1e-3),
        metric: str | None = None,
        mode: Mode = "auto",
        lr_usual: float | None = None,
        verify: bool = True,
        n_epoch: float | None = None,
        seeds: Sequence[int] = (0, 1, 2),
        init: Init | None = None,
    ) -> Diagnosis:
        """Say whether one cycle with an unusually large peak is the best way to train this.

        First a range test with linearly rising rate measures a validation metric, on a fixed
        sample of batches. The rates at which its running median stays high are the plateau, and a
        third of where it ends is a peak for one cycle. The test is repeated with other weight
        decays, since large rates regularize, and other regularization must be less to leave room
        for them.

        Then short fits of equal length prove it, under several seeds: the constant usual rate; one
        cycle to the rate that `minimum` suggests; one cycle to the diagnosed peak. "yes" only if
        the last is better than both by more than the spread over the seeds, "no" if it is not
        better, "unsure" in between. How many fits it will be is printed before they start. Where
        no rate is large, or none is found, there is nothing to fit.

        ``verify=False`` gives the answer of the range tests alone, a guess: "yes" where the plateau
        ends at 5 times the usual rate or further up, "no" below 3 times, and "unsure" in between,
        where the plateau is ragged, or where it begins below the usual rate.

        Nothing is left behind, as by `lr_find`.

        Args:
            end_lr: The highest rate; by default 10 times the usual.
            num_it: The updates of each test, at least 20: the more, the surer.
            wds: Weight decays to try besides the learner's own; ``()`` for none.
            metric: ``"valid_loss"`` or a metric's name; by default the first metric, or the loss
                where there is none.
            mode: As in `compare`.
            lr_usual: The constant rate of a usual fit; by default what `minimum` suggests.
            verify: Make the fits.
            n_epoch: The epochs of each fit; by default as many as make ``num_it`` updates.
            seeds: A fit of each kind for each, as in `compare`.
            init: Makes a model like the learner's, as in `compare`; by default all fits start from
                the weights that the learner has.

        Returns:
            Answer, reason, plateaus, what the fits ended at, and a peak for one cycle; it has a
            ``plot``.

        Raises:
            ValueError, TypeError: If there is no validation loader or no such metric, or for a
                rate or weight decay that cannot be.
            RuntimeError: In the middle of a fit, unless ``verify=False``.

        Source:
            Smith and Topin, "Super-Convergence: Very Fast Training of Neural Networks Using
            Large Learning Rates", arXiv:1708.07120, sections 3 and 4; the weight decays are those
            of Smith, arXiv:1803.09820. What is high and what is wide, in numbers, is this
            package's: see `onecycle.studies.diagnosis` and ``tests/benchmarks/diagnosis.py``.

        Example:
            >>> from onecycle.testing import toy_learner
            >>> found = toy_learner().diagnose(0.1, 60, lr_usual=0.01, wds=(), verify=False)
            >>> found.answer, found.is_guess, found.plateaus[0.01].is_open
            ('yes', True, True)
        """
        check_flag("verify", verify)
        if verify and self._run is not None:
            raise RuntimeError(
                f"a {self._run} is running, in which no other fit can be made: verify=False gives "
                "the answer of range tests alone"
            )
        return diagnose(
            self,
            end_lr,
            num_it,
            wds=wds,
            metric=metric,
            mode=mode,
            lr_usual=lr_usual,
            make_fits=verify,
            n_epoch=n_epoch,
            seeds=seeds,
            init=init,
        )

    def regularization_report(
        self,
        lr_max: GroupValues | Default = Default.OWN,
        n_epoch: float = 1,
        *,
        wds: Sequence[float] | None = None,
        dropouts: Sequence[float] | None = None,
        batch_sizes: Sequence[int] | None = None,
        seeds: Sequence[int] = range(5),
        metric: str | None = None,
        mode: Mode = "auto",
        init: Init | None = None,
    ) -> RegularizationReport:
        """Measure which weight decay, dropout and batch size short fits by one cycle prefer.

        A fit for each setting and seed, from the state that the learner has, in the same number
        of epochs. One thing is varied at a time; the others stay as they are. A line is printed
        for each fit that is done, unless the learner has no progress bar. Nothing is left behind.

        Args:
            lr_max: The peak; by default the learner's rate.
            n_epoch: The epochs of each fit. Smith compares batch sizes at equal time instead,
                which on an accelerator gives a larger batch more epochs.
            wds: The weight decays to compare.
            dropouts: The probabilities to compare, for every dropout module of the model.
            batch_sizes: The batch sizes of the training loader to compare.
            seeds: A fit for each; they govern data order and dropout, and new weights.
            metric: ``"valid_loss"``, the default, or a metric's name.
            mode: As in `compare`.
            init: Makes a model like the learner's, such as its class, so that each seed has new
                weights. By default all fits start from the learner's, and the spread is smaller
                than that of fits from scratch.

        Returns:
            What each fit ended at. It prints as a table of means and spreads, with the best
            setting, or "no difference beyond the spread".

        Raises:
            ValueError, TypeError: If nothing is to be varied, there are fewer than two settings
                or seeds, no validation loader or no such metric, no dropout in the model, or for
                a setting that the optimizer or the loader cannot have.

        Source:
            Smith, "A disciplined approach to neural network hyper-parameters", arXiv:1803.09820:
            the amount of regularization is balanced with the learning rate, by short runs.

        Example:
            >>> from onecycle.testing import toy_learner
            >>> learn = toy_learner()
            >>> report = learn.regularization_report(0.1, wds=[0.0, 1.0], seeds=[0, 1, 2])
            >>> report.recommendation("weight_decay")
            'weight_decay: 0 is best'
        """
        return regularization_report(
            self,
            lr_max,
            n_epoch,
            wds=wds,
            dropouts=dropouts,
            batch_sizes=batch_sizes,
            seeds=seeds,
            metric=metric,
            mode=mode,
            init=init,
        )
