"""Freezing: which weights train, what a norm keeps, and where the head of a model is."""

from functools import partial

import pytest
import torch
import torchvision.models as zoo
from grouped_learner import two_groups
from normed_learner import BODY, HEAD, NORM, normed_learner, sgd, split_body_and_head, trainable
from torch import nn

from onecycle import EMA, SWA, Callback, Checkpoint, Stage, head_splitter, resnet9
from onecycle.testing import toy_learner


@pytest.mark.parametrize("wd", [None, 0.1])
def test_frozen_groups_keep_their_weights_and_their_norms_go_on_training(wd):
    learn = normed_learner(wd=wd)
    learn.freeze()
    assert trainable(learn) == NORM + HEAD
    before = {name: p.detach().clone() for name, p in learn.model.named_parameters()}
    learn.fit(1)
    changed = [n for n, p in learn.model.named_parameters() if not torch.equal(p, before[n])]
    assert changed == NORM + HEAD
    learn.unfreeze()
    learn.fit(1)
    changed = [n for n, p in learn.model.named_parameters() if not torch.equal(p, before[n])]
    assert changed == BODY + NORM + HEAD


@pytest.mark.parametrize("thaw_in", ["between fits", "a callback", "by hand"])
def test_what_thaws_late_trains_on_as_with_an_optimizer_that_is_not_fused(thaw_in):
    # Torch's fused SGD fails on a group in which some have a momentum and some have none.
    def train(learn):
        learn.freeze()
        learn.fit(1)
        if thaw_in == "a callback":
            thaw = Callback(before_epoch=lambda learn: learn.unfreeze() if learn.epoch else None)
            return learn.fit(2, cbs=[thaw])
        if thaw_in == "between fits":
            learn.unfreeze()
        for p in learn.model.parameters():
            p.requires_grad_(True)
        learn.lr_find(1e-5, 1e-3, num_it=8, show_plot=False)
        return learn.fit(2)

    fused, plain = normed_learner(), normed_learner(opt_func=partial(sgd, fused=False))
    assert fused.opt.param_groups[0]["fused"]
    train(fused)
    train(plain)
    for ours, theirs in zip(fused.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_norms_freeze_too_on_request():
    learn = normed_learner()
    learn.freeze(train_bn=False)
    assert trainable(learn) == HEAD


@pytest.mark.parametrize(
    ("n", "expected"), [(0, BODY + NORM + HEAD), (1, HEAD), (-1, HEAD), (-2, BODY + NORM + HEAD)]
)
def test_freeze_to_counts_groups_from_either_end_and_can_thaw(n, expected):
    learn = normed_learner()
    for first in (1, 0, 1):
        learn.freeze_to(first)
    learn.freeze_to(n, train_bn=False)
    assert trainable(learn) == expected


STATISTICS = ("0.1.running_mean", "0.1.running_var", "0.1.num_batches_tracked")


def statistics(learn):
    state = learn.model.state_dict()
    return [state[name].clone() for name in STATISTICS]


def same(left, right):
    return all(map(torch.equal, left, right))


def test_frozen_norms_keep_their_statistics_bit_for_bit_and_the_others_follow_the_data():
    for train_bn in (False, True):
        learn = normed_learner()
        learn.fit(1)
        learn.freeze(train_bn=train_bn)
        before = statistics(learn)
        learn.fit(2)  # a validation pass lies between the two training passes
        assert same(statistics(learn), before) is not train_bn


def test_a_frozen_norm_computes_with_its_statistics_and_not_with_those_of_the_batch():
    learn, seen = normed_learner(), []
    learn.fit(1)
    norm = learn.model[0][1]
    norm.register_forward_hook(lambda module, inputs, out: seen.append((inputs[0], out)))
    learn.freeze(train_bn=False)
    learn.fit(1)
    for xb, out in seen:
        expected = (xb - norm.running_mean) / torch.sqrt(norm.running_var + norm.eps)
        torch.testing.assert_close(out, expected * norm.weight + norm.bias, rtol=1e-4, atol=1e-6)
    assert len(seen) == 16


@pytest.mark.parametrize("thaw", ["unfreeze", "freeze"])
def test_thawing_lets_the_statistics_follow_again(thaw):
    learn = normed_learner()
    learn.freeze(train_bn=False)
    learn.fit(1)
    before = statistics(learn)
    getattr(learn, thaw)()
    assert learn.model[0][1].training == learn.model.training
    learn.fit(1)
    assert not same(statistics(learn), before)


def test_the_norms_of_groups_that_train_are_not_frozen():
    learn = normed_learner()
    learn.freeze_to(0, train_bn=False)
    before = statistics(learn)
    learn.fit(1)
    assert not same(statistics(learn), before)


def test_freezing_and_thawing_within_a_fit_act_at_once():
    seen = []

    def watch(learn):
        seen.append(learn.model[0][1].num_batches_tracked.item())
        if learn.n_updates == 2:
            learn.freeze(train_bn=False)
        if learn.n_updates == 5:
            learn.unfreeze()

    normed_learner().fit(1, cbs=[Callback(after_step=watch)])
    assert seen == [1, 2, 2, 2, 2, 3, 4, 5]


@pytest.mark.parametrize("average", [EMA, SWA])
def test_an_average_of_the_weights_leaves_frozen_norms_alone(average):
    learn = normed_learner()
    learn.fit(1)
    learn.freeze(train_bn=False)
    before = statistics(learn)
    learn.fit(2, cbs=[average()])
    assert same(statistics(learn), before)


def test_a_range_test_leaves_frozen_norms_frozen():
    learn = normed_learner()
    learn.freeze(train_bn=False)
    before, seen = statistics(learn), []
    watch = Callback(after_step=lambda learn: seen.append(learn.model[0][1].training))
    watch.stage = Stage.PREPARE
    learn.cbs.append(watch)
    learn.lr_find(1e-5, 1e-3, num_it=12, show_plot=False)
    learn.fit(1)
    assert seen == [False] * (12 + 8)
    assert same(statistics(learn), before)


@pytest.mark.parametrize("every", ["1 epoch", "3 updates"])
def test_a_resumed_fit_knows_which_norms_were_frozen_meanwhile(tmp_path, every):
    def freeze(learn):
        if learn.total_updates == 6:
            learn.freeze(train_bn=False)

    def run(folder, **options):
        learn = normed_learner()
        learn.fit(2, **options, cbs=[Checkpoint(tmp_path / folder, every, keep=9), freezing])
        return learn

    freezing = Callback(after_step=freeze)
    whole = run("whole")
    newest = sorted((tmp_path / "whole").iterdir())[-2]  # after the sixth update, before the end
    resumed = run("resumed", resume=newest)
    assert resumed.model[0][1].num_batches_tracked == 6
    assert same(resumed.model.state_dict().values(), whole.model.state_dict().values())


def test_a_norm_without_parameters_goes_with_the_module_around_it():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, affine=False), nn.ReLU())
    head = nn.Sequential(nn.BatchNorm1d(8, affine=False), nn.Linear(8, 1))
    toy = toy_learner()
    learn = type(toy)(
        toy.dls,
        nn.Sequential(body, head),
        nn.functional.mse_loss,
        splitter=split_body_and_head,
        device="cpu",
    )
    learn.cbs = toy.cbs
    learn.freeze(train_bn=False)
    learn.fit(1)
    assert (body[1].num_batches_tracked, head[0].num_batches_tracked) == (0, 8)


def test_freezing_touches_nothing_but_requires_grad():
    learn = normed_learner()
    learn.fit(1)
    weights = {k: v.clone() for k, v in learn.model.state_dict().items()}
    groups = [{k: v for k, v in group.items() if k != "params"} for group in learn.opt.param_groups]
    learn.freeze()
    assert all(torch.equal(v, weights[k]) for k, v in learn.model.state_dict().items())
    assert groups == [
        {k: v for k, v in group.items() if k != "params"} for group in learn.opt.param_groups
    ]


@pytest.mark.parametrize("n", [-2, 1, 7])
def test_a_group_that_is_not_there_is_refused_with_a_table_of_those_that_are(n):
    learn = toy_learner()
    with pytest.raises(ValueError, match=rf"group {n}: expected -1 to 0(?s:.*)trainable"):
        learn.freeze_to(n)
    assert all(p.requires_grad for p in learn.model.parameters())


@pytest.mark.parametrize("n", [None, 1.0, "head", True])
def test_what_is_no_number_of_a_group_is_refused(n):
    with pytest.raises(TypeError, match="takes the number of a parameter group"):
        toy_learner().freeze_to(n)


ALL = ["0.weight", "0.bias", "2.weight", "2.bias"]


@pytest.mark.parametrize("call", [lambda m: m.freeze(), lambda m: m.freeze_to(-1)])
def test_with_one_group_it_is_refused_and_the_mend_is_named(call):
    learn = toy_learner()
    with pytest.raises(ValueError, match=r"nothing would be frozen; .*splitter=.*head_splitter"):
        call(learn)
    assert trainable(learn) == ALL
    learn.freeze_to(0)
    assert trainable(learn) == ALL


def test_fine_tune_with_one_group_is_refused_before_it_begins():
    learn = toy_learner()
    with pytest.raises(ValueError, match=r"fine_tune lets the last.*head_splitter"):
        learn.fine_tune(1, freeze_epochs=0)
    assert learn.total_updates == 0


# By hand ------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_hand", [["0.bias"], ["2.bias"], ["0.bias", "2.weight"]])
def test_what_was_frozen_by_hand_stays_so_until_unfreeze(by_hand, caplog):
    learn = toy_learner(splitter=two_groups)
    for name in by_hand:
        learn.model.get_parameter(name).requires_grad_(False)
    learn.freeze()
    assert trainable(learn) == [name for name in ALL[2:] if name not in by_hand]
    learn.freeze_to(0)
    assert trainable(learn) == [name for name in ALL if name not in by_hand]
    for name in by_hand:
        assert f"frozen by hand, and so it stays: {name!r}" in caplog.text or len(by_hand) > 1
    caplog.clear()
    learn.unfreeze()
    assert trainable(learn) == ALL
    assert f"frozen by hand, and trained from now on: {by_hand[0]!r}" in caplog.text


def test_fine_tune_leaves_it_frozen_and_says_so(caplog):
    learn = toy_learner(splitter=two_groups)
    bias = learn.model[0].bias.requires_grad_(False)
    before = bias.clone()
    learn.fine_tune(1, 0.1)
    assert torch.equal(bias, before)
    assert [m for m in caplog.messages if "by hand" in m] == [
        "frozen by hand, and so it stays: '0.bias' (unfreeze() lets all train)"
    ]


def test_freezing_again_and_again_is_no_hand(caplog):
    learn = toy_learner(splitter=two_groups)
    for n in (-1, 0, 1, 0):
        learn.freeze_to(n)
    learn.unfreeze()
    assert trainable(learn) == ALL
    assert caplog.messages == []


def test_what_is_thawed_by_hand_and_frozen_by_hand_counts_as_by_hand():
    learn = toy_learner(splitter=two_groups)
    learn.freeze()
    learn.model[0].bias.requires_grad_(True)
    learn.freeze_to(0)
    learn.model[0].bias.requires_grad_(False)
    learn.freeze_to(0)
    assert trainable(learn) == [ALL[0], *ALL[2:]]


@pytest.mark.parametrize("leave", ["a study", "a range test"])
def test_what_leaves_nothing_behind_remembers_whose_it_is(leave):
    def frozen(learn, n_epoch):
        learn.freeze()
        learn.fit(n_epoch, 0.01)

    learn = toy_learner(splitter=two_groups)
    learn.model[0].bias.requires_grad_(False)
    if leave == "a study":
        learn.compare(1, 0.01, {"frozen": frozen}, seeds=[0])
    else:
        freeze = Callback(before_fit=lambda learn: learn.freeze())
        freeze.runs_in = frozenset(("range_test",))
        learn.cbs.append(freeze)
        learn.lr_find(1e-4, 1e-2, 10, show_plot=False)
        learn.cbs.remove(freeze)
    assert trainable(learn) == [ALL[0], *ALL[2:]]
    assert learn.groups.frozen == set()


def test_a_resumed_fit_thaws_what_a_callback_had_frozen(tmp_path):
    def run(folder, **options):
        learn = toy_learner(splitter=two_groups)
        learn.model[0].bias.requires_grad_(False)
        learn.fit(3, cbs=[freezing, Checkpoint(tmp_path / folder, "1 epoch", keep=9)], **options)
        return learn

    def change(learn):
        learn.freeze_to({0: -1, 1: -1, 2: 0}[learn.epoch])

    def once(learn):
        if learn.epoch in (0, 2):
            change(learn)

    freezing = Callback(before_epoch=once)
    whole = run("whole")
    first, *_ = sorted((tmp_path / "whole").iterdir())
    resumed = run("resumed", resume=first)
    assert trainable(whole) == trainable(resumed) == [ALL[0], *ALL[2:]]
    assert all(map(torch.equal, whole.model.parameters(), resumed.model.parameters()))


# The head -----------------------------------------------------------------------------------


def head_names(model):
    body, head = head_splitter(model)
    assert {id(p) for p in (*body, *head)} == {id(p) for p in model.parameters()}
    found = {id(p) for p in head}
    return sorted({n.rsplit(".", 1)[0] for n, p in model.named_parameters() if id(p) in found})


TORCHVISION = {
    "resnet18": ["fc"],
    "shufflenet_v2_x0_5": ["fc"],
    "densenet121": ["classifier"],
    "squeezenet1_1": ["classifier.1"],
    "mobilenet_v3_small": ["classifier.0", "classifier.3"],
    "efficientnet_b0": ["classifier.1"],
    "mnasnet0_5": ["classifier.1"],
    "convnext_tiny": ["classifier.0", "classifier.2"],
    "vit_b_32": ["heads.head"],
    "swin_t": ["head"],
}


@pytest.mark.parametrize(("name", "expected"), TORCHVISION.items(), ids=TORCHVISION)
def test_it_finds_the_head_of_models_of_torchvision(name, expected):
    with torch.device("meta"):
        model = zoo.get_model(name, weights=None, num_classes=7)
    assert head_names(model) == expected


def test_auxiliary_heads_are_heads_too():
    with torch.device("meta"):
        model = zoo.googlenet(weights=None, num_classes=7, aux_logits=True, init_weights=False)
    found = head_names(model)
    assert found[-1] == "fc"
    assert {name.split(".")[0] for name in found} == {"aux1", "aux2", "fc"}
    with torch.device("meta"):
        model = zoo.segmentation.lraspp_mobilenet_v3_large(weights_backbone=None)
    assert {name.split(".")[0] for name in head_names(model)} == {"classifier"}


class Timm(nn.Module):
    """Names its head as timm's models do."""

    def __init__(self, several=False):
        super().__init__()
        self.linear_out, self.second = nn.Linear(4, 2), nn.Linear(4, 2)
        self.blocks = nn.Linear(4, 4)
        self.several = several

    def get_classifier(self):
        return (self.linear_out, self.second) if self.several else self.linear_out


class Transformer(nn.Module):
    """Names its body as models of transformers do; the weights of embeddings may be shared."""

    def __init__(self, tied=False):
        super().__init__()
        self.bert = nn.Embedding(4, 4)
        self.pre, self.out = nn.Linear(4, 4), nn.Linear(4, 4, bias=False)
        if tied:
            self.out.weight = self.bert.weight

    @property
    def base_model(self):
        return self.bert


class Wrapping(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module


def sequence():
    return nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.Flatten())


OTHERS = {
    "timm": (Timm(), ["linear_out"]),
    "timm, distilled": (Timm(several=True), ["linear_out", "second"]),
    "transformers": (Transformer(), ["out", "pre"]),
    "transformers, tied": (Transformer(tied=True), ["pre"]),
    "sequence": (sequence(), ["2"]),
    "sequence of blocks": (nn.Sequential(sequence(), nn.ReLU(), sequence()), ["2.0", "2.2"]),
    "wrapped": (Wrapping(zoo.resnet18(num_classes=3)), ["module.fc"]),
    "in a sequence": (nn.Sequential(nn.Flatten(), sequence()), ["1.2"]),
}


@pytest.mark.parametrize(("model", "expected"), OTHERS.values(), ids=OTHERS)
def test_it_finds_the_head_of_models_that_say_so(model, expected):
    assert head_names(model) == expected


class Unknown(nn.Module):
    def __init__(self, *names):
        super().__init__()
        for name in names:
            self.add_module(name, nn.Linear(2, 2))


@pytest.mark.parametrize(
    "model",
    [
        Unknown("fc", "decoder"),  # what is called so is not the last
        Unknown("encoder", "decoder"),
        nn.Linear(2, 2),
        nn.Sequential(nn.Linear(2, 2)),
        nn.Sequential(nn.ReLU()),
    ],
)
def test_it_refuses_where_it_cannot_tell(model):
    with pytest.raises(ValueError, match="as far as head_splitter can tell; give splitter="):
        head_splitter(model)


def test_a_learner_splits_by_it_and_fine_tunes():
    learn = toy_learner(splitter=head_splitter)
    learn.fine_tune(1, 0.1)
    assert [len(learn.groups.params(g)) for g in (0, 1)] == [2, 2]
    assert head_names(resnet9()) is not None
