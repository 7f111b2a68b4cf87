"""The policies of the 1cycle literature, made of the schedules in `onecycle.schedules.shapes`.

    one_cycle            fastai 2: up and down on cosines            momentum_cycle
    three_phase          Smith's paper: lines up, down, and a tail   three_phase_momentum
    smith_one_cycle      what Smith's training logs show             smith_momentum
    clr_beta             fastai 0.7, to the batch                    clr_beta_momentum
    fastai1_one_cycle    fastai 1, to the batch                      fastai1_momentum
    flat_cos   warmup_stable_decay   sgdr                            (momentum stays)

The maximum of each is the learning rate that a range test suggests.
"""

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Literal, TypeAlias

from onecycle.arguments import (
    check_count,
    check_divided,
    check_finite,
    check_fraction,
    check_list,
    check_momenta,
    check_momentum,
    check_not_negative,
    check_one_of,
    check_positive,
    shown,
)
from onecycle.schedules.shapes import (
    TOLERANCE,
    Cosine,
    Join,
    JoinSteps,
    Linear,
    Schedule,
    constant,
    cosine,
    join,
    join_steps,
    linear,
)

Anneal: TypeAlias = Literal["cosine", "linear"]

#: Of `smith_momentum`, as a fraction of the training. Of more lines the last would be flat: each
#: pair is half as deep as the one before.
SHORTEST_LINE = 0.001


def one_cycle(
    lr_max: float,
    *,
    div: float = 25.0,
    div_final: float = 1e5,
    pct_start: float = 0.25,
    anneal: Anneal = "cosine",
) -> Join:
    """Raise the learning rate to its maximum, then lower it far below its start.

    Args:
        lr_max: The highest learning rate, from a range test.
        div: The rate starts at ``lr_max / div``.
        div_final: The rate ends at ``lr_max / div_final``.
        pct_start: Where the maximum is, as a fraction of the training.
        anneal: The form of both phases, ``"cosine"`` or ``"linear"``.

    Returns:
        The schedule.

    Raises:
        ValueError: If an argument is out of its range.

    Source:
        Smith and Topin, Super-Convergence (arXiv 1708.07120), in the two-phase form with
        cosines of fastai 2.

    Example:
        >>> one_cycle(1.0)([0.0, 0.125, 0.25, 1.0])
        array([4.0e-02, 5.2e-01, 1.0e+00, 1.0e-05])
    """
    peak = check_not_negative("lr_max", lr_max)
    start, end = check_divided(peak, "div", div), check_divided(peak, "div_final", div_final)
    return _up_and_down((start, peak, end), pct_start, anneal)


def momentum_cycle(
    moms: Sequence[float] = (0.95, 0.85, 0.95),
    *,
    pct_start: float = 0.25,
    anneal: Anneal = "cosine",
) -> Join:
    """Lower the momentum while the rate of `one_cycle` rises, and raise it again.

    Args:
        moms: The momentum at the start, at the maximum of the rate, and at the end, each
            in [0, 1).
        pct_start: Where the maximum of the rate is, as a fraction of the training.
        anneal: The form of both phases, ``"cosine"`` or ``"linear"``.

    Returns:
        The schedule.

    Raises:
        ValueError: If an argument is out of its range.

    Source:
        Smith, A Disciplined Approach, Part 1 (arXiv 1803.09820), section 4.3.

    Example:
        >>> momentum_cycle()([0.0, 0.25, 1.0])
        array([0.95, 0.85, 0.95])
    """
    return _up_and_down(check_momenta(moms), pct_start, anneal)


def three_phase(
    lr_max: float,
    *,
    div: float = 10.0,
    div_final: float = 1000.0,
    fraction_up: float = 0.45,
    fraction_down: float = 0.45,
) -> Join:
    """Raise the rate in a line, lower it in a line, then let it fall far below its start.

    The defaults are those of fastai 0.7's ``use_clr_beta=(10, 10)``: a tenth of the
    training is left for the fall from ``lr_max / 10`` to ``lr_max / 1000``.

    Args:
        lr_max: The highest learning rate, from a range test.
        div: The rate starts at ``lr_max / div``, and is back there after two phases.
        div_final: The rate ends at ``lr_max / div_final``.
        fraction_up: The length of the first phase, as a fraction of the training.
        fraction_down: The length of the second. The third has the rest.

    Returns:
        The schedule.

    Raises:
        ValueError: If an argument is out of its range, or the two phases are together
            longer than the training.

    Source:
        Smith, A Disciplined Approach, Part 1 (arXiv 1803.09820), section 4.2.

    Example:
        >>> three_phase(1.0)([0.0, 0.45, 0.9, 1.0])
        array([0.1  , 1.   , 0.1  , 0.001])
    """
    peak = check_not_negative("lr_max", lr_max)
    base, end = check_divided(peak, "div", div), check_divided(peak, "div_final", div_final)
    up, down, tail = _lengths(fraction_up=fraction_up, fraction_down=fraction_down)
    return join([(up, linear(base, peak)), (down, linear(peak, base)), (tail, linear(base, end))])


def three_phase_momentum(
    moms: Sequence[float] = (0.95, 0.85, 0.95),
    *,
    fraction_up: float = 0.45,
    fraction_down: float = 0.45,
) -> Join:
    """Lower the momentum in a line while the rate of `three_phase` rises, raise it, then hold it.

    Args:
        moms: The momentum at the start, at the maximum of the rate, and from the end of the
            second phase on, each in [0, 1).
        fraction_up: The length of the phase in which the rate rises.
        fraction_down: The length of the phase in which the rate falls. The third has the rest.

    Returns:
        The schedule.

    Raises:
        ValueError: If an argument is out of its range.

    Source:
        Smith, A Disciplined Approach, Part 1 (arXiv 1803.09820), section 4.3.

    Example:
        >>> three_phase_momentum()([0.0, 0.45, 0.9, 1.0])
        array([0.95, 0.85, 0.95, 0.95])
    """
    start, low, end = check_momenta(moms)
    up, down, tail = _lengths(fraction_up=fraction_up, fraction_down=fraction_down)
    return join([(up, linear(start, low)), (down, linear(low, end)), (tail, constant(end))])


def smith_one_cycle(
    lr_max: float,
    *,
    div: float = 10.0,
    div_final: float | None = None,
    half_cycle: float = 0.45,
) -> Join:
    """Raise the rate in a line, lower it in a line towards 0, and hold a last small value.

    So it went in the training logs of the 1cycle papers, other than in their text: the second
    line aims at 0, not at the start, and is caught by a floor.

    Args:
        lr_max: The highest learning rate, from a range test.
        div: The rate starts at ``lr_max / div``.
        div_final: The floor is ``lr_max / div_final``; by default a thousandth of the start.
        half_cycle: The length of each line, as a fraction of the training, at most 0.5.

    Returns:
        The schedule.

    Raises:
        ValueError: If an argument is out of its range.

    Source:
        The logs of Smith, A Disciplined Approach, Part 1 (arXiv 1803.09820), at
        github.com/lnsmith54/hyperParam1.

    Example:
        >>> smith_one_cycle(1.0, half_cycle=0.4)([0.0, 0.4, 0.6, 0.8, 1.0])
        array([1.e-01, 1.e+00, 5.e-01, 1.e-04, 1.e-04])
    """
    peak = check_not_negative("lr_max", lr_max)
    base = check_divided(peak, "div", div)
    final = 1000.0 * div if div_final is None else check_positive("div_final", div_final)
    if final < 1.0:
        came = f"div={div}, and by default 1000 times that" if div_final is None else div_final
        raise ValueError(f"div_final must be at least 1: the floor is below lr_max; got {came}")
    rise = check_fraction("half_cycle", half_cycle)
    if rise > 0.5:
        raise ValueError(f"half_cycle is at most 0.5, since there are two lines; got {half_cycle}")
    floor, fall = peak / final, rise * (1.0 - 1.0 / final)
    tail = max(0.0, 1.0 - rise - fall)
    return join([(rise, linear(base, peak)), (fall, linear(peak, floor)), (tail, constant(floor))])


def smith_momentum(high: float = 0.95, low: float = 0.85, *, half_cycle: float = 0.45) -> Join:
    """Lower and raise the momentum in lines, again and again, each time half as far.

    It does not wait for the rate: where `smith_one_cycle` holds its last value, this falls again.

    Args:
        high: The momentum at the start, in [0, 1).
        low: The lowest momentum, at the end of the first line.
        half_cycle: The length of each line, as a fraction of the training, at least 0.001; above
            1, the first line is not finished.

    Returns:
        The schedule.

    Raises:
        ValueError: If an argument is out of its range.

    Source:
        The logs of Smith, A Disciplined Approach, Part 1 (arXiv 1803.09820), at
        github.com/lnsmith54/hyperParam1. That the second cycle is half as deep follows from
        the momentum 0.939715 that one of them has at step 4800, with lines of 2246 steps
        between 0.95 and 0.8.

    Example:
        >>> smith_momentum(0.9, 0.8, half_cycle=0.25)([0.0, 0.25, 0.5, 0.75, 1.0])
        array([0.9 , 0.8 , 0.9 , 0.85, 0.9 ])
    """
    top, bottom = check_momentum("high", high), check_momentum("low", low)
    length = check_positive("half_cycle", half_cycle)
    if length < SHORTEST_LINE:
        raise ValueError(
            f"half_cycle must be at least {SHORTEST_LINE}: it is a fraction of the training; "
            f"got {shown(half_cycle)}"
        )
    n = max(1, math.ceil(1.0 / length - TOLERANCE))
    turns = [top if k % 2 == 0 else top - (top - bottom) / 2 ** (k // 2) for k in range(n + 1)]
    lines = [(length, linear(a, b)) for a, b in pairwise(turns)]
    left = 1.0 - (n - 1) * length  # for the last line, which the end of the training may cut
    last = linear(turns[-2], linear(turns[-2], turns[-1])(left / length))
    return join([*lines[:-1], (left, last)])


def clr_beta(total_steps: int, *, lr_max: float, div: float = 10.0, pct: float = 10.0) -> JoinSteps:
    """Follow ``use_clr_beta=(div, pct)`` of fastai 0.7, batch by batch.

    Like `three_phase`, but the phases are cut at whole batches, and the rate ends one batch
    before ``lr_max / div / 100``.

    Args:
        total_steps: Optimizer updates in all, at least 1.
        lr_max: The highest learning rate, from a range test.
        div: The rate starts at ``lr_max / div``, and is back there after two phases.
        pct: What the third phase takes, in percent of the training: 10 is a tenth.

    Returns:
        The schedule; `clr_beta_momentum` is the momentum beside it.

    Raises:
        ValueError: If an argument is out of its range.

    Source:
        fastai 0.7; Gugger, The 1cycle policy (sgugger.github.io, 2018).

    Example:
        >>> clr_beta(100, lr_max=1.0)([k / 99 for k in (0, 45, 90, 99)])
        array([0.1   , 1.    , 0.1   , 0.0109])
    """
    peak = check_not_negative("lr_max", lr_max)
    base = check_divided(peak, "div", div)
    half, tail = _clr_beta_lengths(total_steps, pct)
    lines = [(half, linear(base, peak)), (half, linear(peak, base))]
    return join_steps(total_steps, [*lines, (tail, linear(base, base / 100))])


def clr_beta_momentum(
    total_steps: int, *, pct: float = 10.0, max_mom: float = 0.95, min_mom: float = 0.85
) -> JoinSteps:
    """Follow the momentum of ``use_clr_beta=(div, pct, max_mom, min_mom)`` of fastai 0.7.

    Args:
        total_steps: Optimizer updates in all, at least 1.
        pct: What the third phase takes, in percent of the training.
        max_mom: The momentum at the start, and throughout the third phase.
        min_mom: The momentum at the maximum of the rate.

    Returns:
        The schedule.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> clr_beta_momentum(100)([k / 99 for k in (0, 45, 90, 99)])
        array([0.95, 0.85, 0.95, 0.95])
    """
    high, low = check_momentum("max_mom", max_mom), check_momentum("min_mom", min_mom)
    half, tail = _clr_beta_lengths(total_steps, pct)
    lines = [(half, linear(high, low)), (half, linear(low, high))]
    return join_steps(total_steps, [*lines, (tail, constant(high))])


def fastai1_one_cycle(
    total_steps: int,
    *,
    lr_max: float,
    div_factor: float = 25.0,
    pct_start: float = 0.3,
    final_div: float | None = None,
) -> JoinSteps:
    """Follow ``fit_one_cycle`` of fastai 1, batch by batch.

    Like `one_cycle`, but the maximum is at a whole batch, and the rate ends one batch before
    ``lr_max / final_div``.

    Args:
        total_steps: Optimizer updates in all, at least 1.
        lr_max: The highest learning rate, from a range test.
        div_factor: The rate starts at ``lr_max / div_factor``.
        pct_start: The fraction of the batches in which the rate rises.
        final_div: The rate falls towards ``lr_max / final_div``; by default ``div_factor * 1e4``.

    Returns:
        The schedule; `fastai1_momentum` is the momentum beside it.

    Raises:
        ValueError: If an argument is out of its range.

    Source:
        fastai 1.0.61.

    Example:
        >>> fastai1_one_cycle(10, lr_max=1.0)([k / 9 for k in (0, 3, 9)]).round(4)
        array([0.04  , 1.    , 0.0495])
    """
    peak = check_not_negative("lr_max", lr_max)
    start = check_divided(peak, "div_factor", div_factor)
    if final_div is None:
        end = peak / (1e4 * div_factor)
    else:
        end = check_divided(peak, "final_div", final_div)
    rise = int(check_count("total_steps", total_steps) * check_fraction("pct_start", pct_start))
    fall = cosine(peak, end)
    return join_steps(total_steps, [(rise, cosine(start, peak)), (total_steps - rise, fall)])


def fastai1_momentum(
    total_steps: int, *, moms: tuple[float, float] = (0.95, 0.85), pct_start: float = 0.3
) -> JoinSteps:
    """Follow the momentum of ``fit_one_cycle`` of fastai 1, batch by batch.

    Args:
        total_steps: Optimizer updates in all, at least 1.
        moms: The momentum at the start, and at the maximum of the rate.
        pct_start: The fraction of the batches in which the rate rises.

    Returns:
        The schedule.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> fastai1_momentum(10)([k / 9 for k in (0, 3, 9)]).round(4)
        array([0.95 , 0.85 , 0.945])
    """
    both = check_list("moms", moms, "two momenta")
    if len(both) != 2:
        raise ValueError(f"moms must be two momenta, such as (0.95, 0.85); got {shown(moms)}")
    high, low = (check_momentum("a momentum of moms", mom) for mom in both)
    rise = int(check_count("total_steps", total_steps) * check_fraction("pct_start", pct_start))
    rest = (total_steps - rise, cosine(low, high))
    return join_steps(total_steps, [(rise, cosine(high, low)), rest])


def flat_cos(lr: float, *, div_final: float = 1e5, pct_start: float = 0.75) -> Join:
    """Hold the rate, then let it fall on half a cosine.

    Args:
        lr: The rate that is held.
        div_final: The rate ends at ``lr / div_final``.
        pct_start: Where the fall begins, as a fraction of the training.

    Returns:
        The schedule.

    Raises:
        ValueError: If an argument is out of its range.

    Source:
        fastai 2's ``fit_flat_cos``.

    Example:
        >>> flat_cos(1.0)([0.0, 0.75, 0.875, 1.0])
        array([1.00000e+00, 1.00000e+00, 5.00005e-01, 1.00000e-05])
    """
    top = check_not_negative("lr", lr)
    first = check_fraction("pct_start", pct_start)
    fall = cosine(top, check_divided(top, "div_final", div_final))
    return join([(first, constant(top)), (1.0 - first, fall)])


def warmup_stable_decay(
    lr_max: float,
    *,
    div: float = 25.0,
    div_final: float = 1e5,
    fraction_up: float = 0.1,
    fraction_down: float = 0.2,
    anneal: Anneal = "linear",
) -> Join:
    """Raise the rate to a plateau, hold it, and let it fall at the end.

    Args:
        lr_max: The rate of the plateau.
        div: The rate starts at ``lr_max / div``.
        div_final: The rate ends at ``lr_max / div_final``.
        fraction_up: The length of the rise, as a fraction of the training.
        fraction_down: The length of the fall. The plateau has the rest.
        anneal: The form of rise and fall, ``"cosine"`` or ``"linear"``.

    Returns:
        The schedule.

    Raises:
        ValueError: If an argument is out of its range, or rise and fall are together longer
            than the training.

    Source:
        Hu et al., MiniCPM (arXiv 2404.06395), section 4, which names it.

    Example:
        >>> warmup_stable_decay(1.0, div=10, div_final=100)([0.0, 0.1, 0.8, 0.9, 1.0])
        array([0.1  , 1.   , 1.   , 0.505, 0.01 ])
    """
    check_one_of("anneal", anneal, ("cosine", "linear"))
    shape = Cosine if anneal == "cosine" else Linear
    peak = check_not_negative("lr_max", lr_max)
    start, end = check_divided(peak, "div", div), check_divided(peak, "div_final", div_final)
    up, down, flat = _lengths(fraction_up=fraction_up, fraction_down=fraction_down)
    return join([(up, shape(start, peak)), (flat, constant(peak)), (down, shape(peak, end))])


def sgdr(
    total_steps: int,
    *,
    lr_max: float,
    n_cycles: int,
    cycle_mult: float = 2.0,
    lr_min: float = 0.0,
) -> JoinSteps:
    """Let the rate fall on half a cosine, jump back, and fall again, in longer and longer cycles.

    Each cycle is a small training of its own: its first update has ``lr_max`` and its last one
    exactly ``lr_min``. (`torch_warm_restarts` jumps where ``lr_min`` would be reached.)

    Args:
        total_steps: Optimizer updates in all, at least 1.
        lr_max: The rate at the start of every cycle.
        n_cycles: The number of cycles.
        cycle_mult: How many times longer each cycle is than the one before; cut to whole updates.
        lr_min: The rate at the end of every cycle.

    Returns:
        The schedule.

    Raises:
        ValueError: If an argument is out of its range.

    Source:
        Loshchilov and Hutter, SGDR (arXiv 1608.03983).

    Example:
        >>> sgdr(9, lr_max=1.0, n_cycles=2)([k / 8 for k in range(9)])
        array([1.       , 0.5      , 0.       , 1.       , 0.9045085, 0.6545085,
               0.3454915, 0.0954915, 0.       ])
    """
    top, low = check_not_negative("lr_max", lr_max), check_not_negative("lr_min", lr_min)
    factor = check_positive("cycle_mult", cycle_mult)
    shares = list(accumulate(factor**k for k in range(check_count("n_cycles", n_cycles))))
    ends = [round(check_count("total_steps", total_steps) * share / shares[-1]) for share in shares]
    phases: list[tuple[int, Schedule]] = []
    for start, end in pairwise([0, *ends]):
        if end - start == 1:
            phases.append((1, constant(top)))
        elif end > start:
            phases += [(end - start - 1, cosine(top, low)), (1, constant(low))]
    return join_steps(total_steps, phases)


def _up_and_down(levels: Sequence[float], pct_start: float, anneal: Anneal) -> Join:
    """Go through three levels, the second of them at pct_start."""
    first = check_fraction("pct_start", pct_start)
    check_one_of("anneal", anneal, ("cosine", "linear"))
    shape = Cosine if anneal == "cosine" else Linear
    start, peak, end = levels
    return join([(first, shape(start, peak)), (1.0 - first, shape(peak, end))])


def _lengths(**given: float) -> tuple[float, float, float]:
    """Return two lengths and the rest of the training; named, for the error."""
    first, second = (check_fraction(name, value) for name, value in given.items())
    rest = 1.0 - first - second
    if rest < -TOLERANCE:
        raise ValueError(
            f"{' + '.join(given)} is at most 1; {first:g} + {second:g} = {first + second:.9g}"
        )
    # What rounding leaves of 1 is no third phase.
    return first, second, rest if rest > TOLERANCE else 0.0


def _clr_beta_lengths(total_steps: int, pct: float) -> tuple[int, int]:
    """Return the batches of each of the two lines, and of the third phase."""
    n = check_count("total_steps", total_steps)
    if not 0 <= check_finite("pct", pct) <= 100:
        raise ValueError(f"pct is in percent, from 0 to 100; got {pct}")
    half = int(n * (1 - pct / 100) / 2)
    return half, n - 2 * half
