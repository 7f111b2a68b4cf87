"""`Studies`: the verbs of a learner that measure what would train it well, and change nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

from onecycle.comparison import NAMES, Compared, Comparison, compare
from onecycle.diagnosis import Diagnosis, diagnose
from onecycle.hyperparams import GroupValues
from onecycle.loop import Loop
from onecycle.monitor import Mode
from onecycle.regularization import RegularizationReport, regularization_report
from onecycle.trials import Init

if TYPE_CHECKING:
    from onecycle.learner import Learner


class Studies(Loop):
    """The part of `Learner` that studies it by range tests and short fits."""

    def compare(
        self,
        n_epoch: int,
        lr: GroupValues | None = None,
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
            mode: Whether less (``"min"``) or more (``"max"``) of the metric is better; by default
                by its name.
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
            cast("Learner", self),
            n_epoch,
            lr,
            policies,
            seeds,
            metric=metric,
            target=target,
            mode=mode,
            init=init,
        )

    def diagnose(
        self,
        end_lr: float | None = None,
        num_it: int = 200,
        *,
        wds: Sequence[float] = (0.0, 1e-4, 1e-3),
        metric: str | None = None,
        lr_usual: float | None = None,
    ) -> Diagnosis:
        """Say whether super-convergence is possible for this model and data.

        A range test with linearly rising rate measures a validation metric after each update.
        Where the metric stays high far beyond the usual rate, one cycle with a large peak can beat
        the usual rate in the same number of updates: "yes" from 5 times the usual rate on, "no"
        below 3 times. "unsure" is in between, where the metric is high below the usual rate too,
        or where no usual rate is found.

        The test is repeated with other weight decays, since large rates regularize, and other
        regularization must be less to leave room for them. Each takes ``num_it`` updates. Nothing
        is left behind, as by `lr_find`.

        Args:
            end_lr: The highest rate; by default 10 times the usual.
            num_it: The updates of each test, at least 20: the more, the surer.
            wds: Weight decays to try besides the learner's own; ``()`` for none.
            metric: ``"valid_loss"`` or a metric's name; by default the first metric, or the loss
                where there is none. Less is better for a name with "loss", "error", "mse" or
                "mae" in it.
            lr_usual: The constant rate of a usual fit; by default what the rule `minimum` suggests
                after an exponential range test.

        Returns:
            Answer, reason, plateaus, and a peak for one cycle; it has a ``plot``.

        Raises:
            ValueError, TypeError: If there is no validation loader or no such metric, or for a
                rate or weight decay that cannot be.

        Source:
            Smith and Topin, "Super-Convergence: Very Fast Training of Neural Networks Using
            Large Learning Rates", arXiv:1708.07120, sections 3 and 4; the weight decays are those
            of Smith, arXiv:1803.09820. What is high and what is wide, in numbers, is this
            package's: see `onecycle.diagnosis` and ``tests/benchmarks/diagnose.py``.

        Example:
            >>> from onecycle.testing import toy_learner
            >>> found = toy_learner().diagnose(0.1, 60, lr_usual=0.01, wds=())
            >>> found.answer, found.plateaus[0.01].is_open
            ('yes', True)
        """
        learn = cast("Learner", self)
        return diagnose(learn, end_lr, num_it, wds=wds, metric=metric, lr_usual=lr_usual)

    def regularization_report(
        self,
        lr_max: GroupValues | None = None,
        n_epoch: int = 1,
        *,
        wds: Sequence[float] | None = None,
        dropouts: Sequence[float] | None = None,
        batch_sizes: Sequence[int] | None = None,
        seeds: Sequence[int] = range(5),
        metric: str | None = None,
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
            cast("Learner", self),
            lr_max,
            n_epoch,
            wds=wds,
            dropouts=dropouts,
            batch_sizes=batch_sizes,
            seeds=seeds,
            metric=metric,
            init=init,
        )
