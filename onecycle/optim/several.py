"""`Optimizers`: several optimizers that make one update together, as Muon beside AdamW."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from onecycle.arguments import check_is

#: The key of a group that says which of the optimizers steps it.
OWNER = "optimizer"


class Optimizers(Optimizer):
    """Several optimizers as one: the groups of all in one list, one state, one step of each.

    The groups stay the optimizers' own dicts, in their order, and each has the name of its
    optimizer under the key ``"optimizer"``. A parameter that has no gradient is passed over by its
    optimizer, as ever: where a batch gives gradients to the parameters of one of them alone, that
    one alone changes anything.

    Args:
        members: The optimizers by name, each with parameters of its own. They are used by this one
            from then on, and share its state.

    Raises:
        TypeError: If one is no optimizer.
        ValueError: If there is none, two hold the same parameter, or one cannot be combined, since
            its state has a form of its own or it has a training and an evaluation mode.

    Example:
        >>> import torch
        >>> layer = nn.Linear(2, 2)
        >>> opt = Optimizers({
        ...     "matrices": torch.optim.Muon([layer.weight], lr=0.02),
        ...     "rest": torch.optim.AdamW([layer.bias], lr=0.001),
        ... })
        >>> [(group["optimizer"], group["lr"]) for group in opt.param_groups]
        [('matrices', 0.02), ('rest', 0.001)]
    """

    def __init__(self, members: Mapping[str, Optimizer]) -> None:
        _check_members(members)
        self.members = dict(members)
        groups = []
        for name, opt in self.members.items():
            for group in opt.param_groups:
                group[OWNER] = name
                groups.append(group)
        try:
            super().__init__(groups, {})
        except ValueError as error:
            raise ValueError(f"the optimizers cannot be one: {error}") from error
        for opt in self.members.values():
            self.state.update(opt.state)
            opt.state = self.state

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the optimizer that its key ``"optimizer"`` names.

        Raises:
            ValueError: If it names none.
        """
        if param_group.get(OWNER) not in self.members:
            raise ValueError(
                f"a group of several optimizers says whose it is: give it {OWNER!r}, one of "
                f"{', '.join(map(repr, self.members))}"
            )
        super().add_param_group(param_group)
        self.hand_out()

    def hand_out(self) -> None:
        """Give each optimizer the groups that are its own and that it does not have yet."""
        known = {id(own) for opt in self.members.values() for own in opt.param_groups}
        for group in self.param_groups:
            if id(group) not in known:
                self.members[group[OWNER]].add_param_group(group)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy is made of: torch's own would leave the optimizers out."""
        return {**super().__getstate__(), "members": self.members}

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Step each of the optimizers.

        Args:
            closure: Called once, before all steps.
        """
        loss = None if closure is None else closure()
        for opt in self.members.values():
            opt.step()
        return loss


def _check_members(members: Mapping[str, Optimizer]) -> None:
    if not members:
        raise ValueError("expected at least one optimizer; got none")
    for name, opt in members.items():
        if not isinstance(opt, Optimizer):
            raise TypeError(f"{name!r} must be an optimizer; got a {type(opt).__name__}")
        kind = type(opt)
        if callable(getattr(opt, "train", None)) and callable(getattr(opt, "eval", None)):
            raise ValueError(
                f"{kind.__name__} has a training and an evaluation mode, and cannot be combined"
            )
        own = (kind.state_dict, kind.load_state_dict)
        if own != (Optimizer.state_dict, Optimizer.load_state_dict):
            raise ValueError(
                f"{kind.__name__} has a state_dict of its own form, and cannot be combined"
            )


def each_of(opt: Optimizer) -> list[Optimizer]:
    """Return the optimizers that are one together; of any other that one alone.

    Args:
        opt: The optimizer.
    """
    return [*opt.members.values()] if isinstance(opt, Optimizers) else [opt]


def as_one(
    opt: Optimizer | Sequence[Optimizer] | Mapping[str, Optimizer] | None,
) -> Optimizer | None:
    """Return an optimizer as it is, and several as one, those of a list by their places in it.

    Args:
        opt: What was given to the `Learner`.
    """
    if isinstance(opt, list | tuple):
        return Optimizers({str(i): each for i, each in enumerate(opt)})
    return Optimizers(opt) if isinstance(opt, Mapping) else opt  # type: ignore[return-value]


def muon_groups(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Split a model for Muon, a ``splitter`` of `Learner`: hidden matrices, and the rest.

    Muon is for the matrices of hidden layers. Embeddings, the last matrix of the model (its head),
    what is no matrix (biases, norms, filters of convolutions), and what is shared with one of these
    are left to another optimizer.

    Args:
        model: The model.

    Returns:
        ``"matrices"`` and ``"rest"``, for ``opt_func={"matrices": Muon, "rest": AdamW}``.

    Raises:
        ValueError: If there is no hidden matrix.

    Source:
        Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024.

    Example:
        >>> model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 9))
        >>> [[tuple(p.shape) for p in group] for group in muon_groups(model).values()]
        [[(4, 4)], [(9, 4), (4,), (9, 4), (9,)]]
    """
    check_is("model", model, nn.Module)
    embeddings = {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag)
    }
    # Where the head shares its matrix with an embedding, it comes last all the same.
    every = [p for _, p in model.named_parameters(remove_duplicate=False) if p.ndim == 2]
    hidden = {id(p) for p in every} - embeddings - {id(p) for p in every[-1:]}
    if not hidden:
        raise ValueError(
            f"{type(model).__name__} has no matrix but embeddings and its last layer: nothing is "
            "for Muon; use opt_func=AdamW"
        )
    parameters = list(model.parameters())
    return {
        "matrices": [p for p in parameters if id(p) in hidden],
        "rest": [p for p in parameters if id(p) not in hidden],
    }
