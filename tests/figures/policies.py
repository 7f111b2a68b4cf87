"""Draw every policy: ``python tests/figures/policies.py`` writes nbs/figures/policies.png."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import onecycle as oc
from onecycle.plots.style import ORANGE

STEPS = 240
TORCH = oc.torch_one_cycle(STEPS, max_lr=1.0)
THREE = oc.torch_one_cycle(STEPS, max_lr=1.0, three_phase=True, anneal_strategy="linear")
CYCLE = {"base_lr": 0.1, "max_lr": 1.0, "step_size_up": 30}
CYCLIC = oc.torch_cyclic(STEPS, **CYCLE)

#: By title: the rate, and the momentum beside it or None.
POLICIES = {
    "one_cycle": (oc.one_cycle(1.0), oc.momentum_cycle()),
    "one_cycle, linear": (
        oc.one_cycle(1.0, anneal="linear"),
        oc.momentum_cycle(anneal="linear"),
    ),
    "three_phase": (oc.three_phase(1.0), oc.three_phase_momentum()),
    "smith_one_cycle": (oc.smith_one_cycle(1.0), oc.smith_momentum()),
    "clr_beta": (oc.clr_beta(STEPS, lr_max=1.0), oc.clr_beta_momentum(STEPS)),
    "fastai1_one_cycle": (oc.fastai1_one_cycle(STEPS, lr_max=1.0), oc.fastai1_momentum(STEPS)),
    "torch_one_cycle": (TORCH, TORCH.momentum()),
    "torch, three_phase=True": (THREE, THREE.momentum()),
    "flat_cos": (oc.flat_cos(1.0), None),
    "warmup_stable_decay": (oc.warmup_stable_decay(1.0), None),
    "sgdr": (oc.sgdr(STEPS, lr_max=1.0, n_cycles=3), None),
    "torch_warm_restarts": (oc.torch_warm_restarts(STEPS, lr=1.0, t_0=80), None),
    "torch_step": (oc.torch_step(STEPS, lr=1.0, step_size=60, gamma=0.5), None),
    "torch_linear": (oc.torch_linear(STEPS, lr=1.0, total_iters=60), None),
    "torch_cosine": (oc.torch_cosine(STEPS, lr=1.0, t_max=80), None),
    "torch_cyclic": (CYCLIC, CYCLIC.momentum()),
    "torch_cyclic, triangular2": (oc.torch_cyclic(STEPS, **CYCLE, mode="triangular2"), None),
    "torch_cyclic, exp_range": (
        oc.torch_cyclic(STEPS, **CYCLE, mode="exp_range", gamma=0.99),
        None,
    ),
}
#: The panels whose axis of momentum has labels: the last of each row that has momentum.
RIGHTMOST = (5, 7, 15)


def draw(path: Path) -> None:
    """Write the figure: a panel for each policy, the momentum on an axis of its own."""
    figure, axes = plt.subplots(3, 6, figsize=(15, 6.8), sharex=True, layout="constrained")
    for k, (ax, (title, (rate, momentum))) in enumerate(
        zip(axes.flat, POLICIES.items(), strict=True)
    ):
        oc.plot_schedule(rate, steps=STEPS, ax=ax)
        ax.set_title(title, fontsize=10)
        ax.set(ylim=(-0.03, 1.05), xlabel="", ylabel="")
        if k % 6:
            ax.tick_params(labelleft=False)
        if momentum is not None:
            right = ax.twinx()
            oc.plot_schedule(momentum, steps=STEPS, ax=right)
            right.lines[0].set(color=ORANGE, linestyle="--", linewidth=1.2)
            right.set(ylim=(0.7, 0.96), xlabel="", ylabel="", yticks=[0.8, 0.85, 0.9, 0.95])
            right.grid(visible=False)
            right.spines["right"].set_visible(True)
            right.tick_params(colors=ORANGE, labelsize=8)
            right.tick_params(labelright=k in RIGHTMOST)
    figure.supxlabel("fraction of training")
    figure.suptitle(
        "Learning rate as a share of its maximum (blue), momentum (orange, right axis)", fontsize=12
    )
    figure.savefig(path, dpi=75, pil_kwargs={"optimize": True})
    plt.close(figure)


if __name__ == "__main__":
    draw(Path(__file__).parents[2] / "nbs" / "figures" / "policies.png")
