"""`Studies`: the verbs of a learner that measure what would train it well, and change nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from onecycle.diagnosis import Diagnosis, diagnose
from onecycle.hyperparams import GroupValues
from onecycle.loop import Loop
from onecycle.regularization import RegularizationReport, regularization_report
from onecycle.trials import Init

if TYPE_CHECKING:
    from onecycle.learner import Learner


class Studies(Loop):
    """The part of `Learner` that studies it by range tests and short fits."""

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
        of epochs. One thing is varied at a time; the others stay as they are. Nothing is left
        behind.

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
