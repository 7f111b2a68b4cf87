import functools

import pytest
import torch
from torch import nn

from onecycle import Callback, CancelStep
from onecycle.optim.groups import ParamGroups, check_value
from onecycle.testing import toy_learner

HAVE = {
    "SGD": "momentum",
    "RMSprop": "momentum",
    "Muon": "momentum",
    "Adam": "beta1",
    "AdamW": "beta1",
    "NAdam": "beta1",
    "RAdam": "beta1",
    "Adamax": "beta1",
    "SparseAdam": "beta1",
}
HAVE_NONE = ("Adagrad", "Adadelta", "ASGD", "Rprop", "Adafactor")


def make(name, **options):
    return getattr(torch.optim, name)([nn.Parameter(torch.zeros(2, 3))], lr=0.1, **options)


def sgd(n=3, **options):
    params = [{"params": [nn.Parameter(torch.zeros(2))]} for _ in range(n)]
    return torch.optim.SGD(params, lr=0.1, **options)


def test_every_optimizer_of_torch_is_in_one_of_the_two_lists():
    classes = {
        name
        for name, kind in vars(torch.optim).items()
        if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)
    }
    assert classes - {"Optimizer", "LBFGS"} == {*HAVE, *HAVE_NONE}


@pytest.mark.parametrize("name", HAVE)
def test_momentum_is_what_the_optimizer_has(name):
    opt = make(name)
    groups = ParamGroups(opt)
    assert groups.has_momentum()
    groups.set("momentum", 0.77)
    group = opt.param_groups[0]
    if HAVE[name] == "momentum":
        assert group["momentum"] == 0.77
    else:
        assert group["betas"] == (0.77, 0.999)
        assert "momentum" not in group
    assert groups.get("momentum") == [0.77]


@pytest.mark.parametrize("name", HAVE_NONE)
def test_momentum_asked_by_name_is_refused_where_there_is_none(name):
    groups = ParamGroups(make(name))
    assert not groups.has_momentum()
    assert not groups.momentum_is_on()
    assert "momentum" not in groups.names()
    with pytest.raises(ValueError, match=f"{name} has no hyperparameter 'momentum'; it has lr"):
        groups.set("momentum", 0.9)


@pytest.mark.parametrize(("options", "on"), [({}, False), ({"momentum": 0.9}, True)])
@pytest.mark.parametrize("name", ["SGD", "RMSprop"])
def test_momentum_zero_is_there_and_off(name, options, on):
    groups = ParamGroups(make(name, **options))
    assert groups.has_momentum()
    assert groups.momentum_is_on() is on


def test_momentum_that_is_off_in_one_group_is_off():
    opt = sgd(2, momentum=0.9)
    opt.param_groups[1]["momentum"] = 0
    assert not ParamGroups(opt).momentum_is_on()


def test_the_betas_go_by_their_own_names_and_leave_each_other_alone():
    opt = make("AdamW")
    groups = ParamGroups(opt)
    groups.set("beta2", 0.95)
    assert opt.param_groups[0]["betas"] == (0.9, 0.95)
    assert groups.get("beta1") == groups.get("momentum") == [0.9]
    with pytest.raises(ValueError, match="no hyperparameter 'beta3'"):
        groups.get("beta3")


def test_the_names_are_the_numbers_of_the_optimizer():
    assert set(ParamGroups(make("AdamW")).names()) == {
        "lr",
        "eps",
        "weight_decay",
        "beta1",
        "beta2",
        "momentum",
    }
    assert set(ParamGroups(make("SGD")).names()) == {"lr", "momentum", "dampening", "weight_decay"}


def test_switches_and_parameters_are_no_hyperparameters():
    groups = ParamGroups(make("SGD"))
    for name in ("nesterov", "foreach", "params", "nonsense"):
        with pytest.raises(ValueError, match=f"SGD has no hyperparameter '{name}'; it has lr"):
            groups.get(name)


def test_a_tensor_rate_is_filled_in_place():
    rate = torch.tensor(0.1)
    opt = torch.optim.Adam([nn.Parameter(torch.zeros(2))], lr=rate)
    groups = ParamGroups(opt)
    groups.set("lr", 0.25)
    assert opt.param_groups[0]["lr"] is rate
    assert groups.get("lr") == [0.25]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (0.5, [0.5, 0.5, 0.5]),
        (0, [0.0, 0.0, 0.0]),
        ([1, 2, 3], [1.0, 2.0, 3.0]),
        ((0.1, 0.2, 0.3), [0.1, 0.2, 0.3]),
        (torch.tensor(0.5), [0.5, 0.5, 0.5]),
        (torch.tensor([0.5, 1.0, 2.0]), [0.5, 1.0, 2.0]),
        (slice(0.01, 1.0), [0.01, 0.1, 1.0]),
        (slice(1.0), [0.1, 0.1, 1.0]),
    ],
)
def test_values_are_expanded_to_one_for_each_group(values, expected):
    found = ParamGroups(sgd(3)).expand("lr", values)
    assert found == pytest.approx(expected, rel=1e-15)
    assert all(type(value) is float for value in found)


@pytest.mark.parametrize(("lo", "hi"), [(1e-4, 0.03), (1e-5, 0.5), (0.01, 0.7), (1e-3, 9e-3)])
def test_the_ends_of_a_slice_are_exact_to_the_bit(lo, hi):
    assert lo * (hi / lo) ** 1.0 != hi  # computed like those between, the end would be another
    for n in (2, 3, 4):
        found = ParamGroups(sgd(n)).expand("lr", slice(lo, hi))
        assert (found[0], found[-1], len(found)) == (lo, hi, n)


def test_of_a_slice_with_one_group_the_end_is_all_there_is():
    assert ParamGroups(sgd(1)).expand("lr", slice(3e-3)) == [3e-3]


def test_a_slice_with_two_ends_is_refused_with_one_group_and_the_mend_is_named():
    with pytest.raises(ValueError, match=r"there is one: give one number, or .*head_splitter"):
        ParamGroups(sgd(1)).expand("lr", slice(1e-5, 3e-3))


@pytest.mark.parametrize(
    ("values", "error", "words"),
    [
        (-0.1, ValueError, "not negative; got -0.1"),
        (float("nan"), ValueError, "lr must be finite"),
        (float("inf"), ValueError, "lr must be finite"),
        ("0.1", TypeError, "lr must be a number"),
        (None, TypeError, "lr must be a number"),
        (True, TypeError, "lr must be a number"),
        ([0.1, None, 0.2], TypeError, "lr must be a number"),
        ([[0.1], [0.2], [0.3]], TypeError, "lr must be a number"),
        ([0.1, 0.2], ValueError, r"expected one lr, or 3 of them.*got 2(?s:.*)trainable"),
        (torch.zeros(2), ValueError, "got 2"),
        (slice(None), ValueError, r"expected slice\(hi\) or slice\(lo, hi\)"),
        (slice(0.1, 1.0, 2), ValueError, "expected slice"),
        (slice(0, 1.0), ValueError, "both ends must be above 0"),
        (slice(-1, 1.0), ValueError, "start of the slice must be"),
    ],
)
def test_bad_values_are_refused_and_nothing_is_changed(values, error, words):
    groups = ParamGroups(sgd(3))
    with pytest.raises(error, match=words):
        groups.set("lr", values)
    assert groups.get("lr") == [0.1] * 3


@pytest.mark.parametrize("name", ["momentum", "beta1", "beta2"])
@pytest.mark.parametrize("value", [1.0, 1.5])
def test_a_momentum_of_one_or_more_is_refused(name, value):
    groups = ParamGroups(make("AdamW"))
    with pytest.raises(ValueError, match=f"{name} must be below 1; got {value}"):
        groups.set(name, value)


def test_check_value_takes_scalars_of_other_libraries():
    import numpy as np

    for scalar in (np.float32(0.5), np.float64(0.5), torch.tensor(0.5), np.array(0.5)):
        assert check_value("lr", scalar) == 0.5


def test_the_splitters_groups_may_have_several_of_the_optimizers():
    opt = sgd(2, weight_decay=0.1)
    exempt = nn.Parameter(torch.zeros(2))
    opt.param_groups[0]["params"].append(exempt)
    groups = ParamGroups(opt, exempt=[id(exempt)])
    groups.set("lr", [1.0, 2.0])
    groups.set("weight_decay", 0.5)
    assert len(groups) == 2
    assert [group["lr"] for group in opt.param_groups] == [1.0, 2.0, 1.0]
    assert [group["weight_decay"] for group in opt.param_groups] == [0.5, 0.5, 0.0]
    assert groups.get("weight_decay") == [0.5, 0.5]
    assert [p.shape for p in groups.params(0)] == [(2,), (2,)]


def test_the_table_counts_tensors_parameters_and_what_trains():
    opt = sgd(2, weight_decay=0.1)
    opt.param_groups[1]["params"][0].requires_grad_(False)
    lines = ParamGroups(opt).table().splitlines()
    assert lines[0].split() == ["group", "tensors", "parameters", "trainable", "lr", "weight_decay"]
    assert [line.split() for line in lines[1:]] == [
        ["0", "1", "2", "2", "0.1", "0.1"],
        ["1", "1", "2", "0", "0.1", "0.1"],
    ]


# Momentum in the verbs --------------------------------------------------------------------


def learner(name, **options):
    return toy_learner(4, opt_func=functools.partial(getattr(torch.optim, name), **options))


@pytest.mark.parametrize("name", HAVE_NONE)
def test_by_default_the_rate_alone_is_cycled_where_there_is_no_momentum_with_one_message(
    name, caplog
):
    learn = learner(name)
    learn.fit_one_cycle(1, 0.01)
    assert [record.message for record in caplog.records] == [
        f"{name} has no momentum: only the learning rate is cycled "
        "(moms=False says so without a word)"
    ]
    assert learn.recorder.history["lr"].values[-1] == 0.01 / 1e5
    assert "momentum" not in learn.recorder.history


def test_momentum_zero_is_never_switched_on_silently(caplog):
    learn = learner("SGD")
    learn.fit_one_cycle(1, 0.01)
    assert "SGD has momentum 0: only the learning rate is cycled" in caplog.text
    assert set(learn.recorder.history["momentum"].values) == {0.0}
    assert not any("momentum_buffer" in state for state in learn.opt.state.values()) or all(
        state["momentum_buffer"] is None for state in learn.opt.state.values()
    )


def test_momentum_zero_is_switched_on_by_name():
    learn = learner("SGD")
    learn.fit_one_cycle(1, 0.01, moms=(0.9, 0.8, 0.9))
    assert learn.recorder.history["momentum"].values[[0, -1]].tolist() == [0.9, 0.9]


def test_moms_false_leaves_momentum_alone_without_a_word(caplog):
    for name, options in (("Adagrad", {}), ("SGD", {}), ("SGD", {"momentum": 0.7})):
        learn = learner(name, **options)
        learn.fit_one_cycle(1, 0.01, moms=False)
        if name == "SGD":
            assert set(learn.recorder.history["momentum"].values) == {options.get("momentum", 0.0)}
    assert not caplog.records


@pytest.mark.parametrize("name", HAVE_NONE)
def test_momentum_asked_by_name_is_refused_before_the_first_batch(name):
    learn, batches = learner(name), []
    with pytest.raises(ValueError, match=f"{name} has no hyperparameter 'momentum'"):
        learn.fit_one_cycle(
            1, 0.01, moms=(0.9, 0.8, 0.9), cbs=[Callback(before_batch=batches.append)]
        )
    assert not batches


def test_momentum_waits_with_the_rate_for_an_update_that_is_skipped():
    def skip(learn):
        if learn.iter == 1:
            raise CancelStep

    learn, full = learner("AdamW"), learner("AdamW")
    learn.fit_one_cycle(1, 0.01, cbs=[Callback(before_step=skip)])
    full.fit_one_cycle(1, 0.01)
    momenta = learn.recorder.history["momentum"].values.tolist()
    assert momenta == full.recorder.history["momentum"].values.tolist()[:3]
