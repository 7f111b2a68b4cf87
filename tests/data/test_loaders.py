import copy

import pytest
import torch
from numbered_loaders import (
    BATCH,
    NUMBERS,
    N,
    Stream,
    every_loader,
    pass_over,
    values,
)
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    SubsetRandomSampler,
    TensorDataset,
)

from onecycle.data.loaders import (
    DataLoaders,
    TensorLoader,
    as_dataloaders,
    n_batches,
    with_batch_size,
)


def test_a_pair_becomes_dataloaders_and_dataloaders_stay_the_same_object():
    train, valid = [1, 2], [3]
    dls = as_dataloaders((train, valid))
    assert dls.train is train
    assert dls.valid is valid
    assert as_dataloaders(dls) is dls
    assert as_dataloaders((train, None)).valid is None


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (
            DataLoader(NUMBERS),
            r"got DataLoader; write \(loader, None\) to train without validation",
        ),
        (([1], [2], [3]), r"got tuple of 3 items; .*, and \(train, valid\) with validation"),
        ([[1], [2]], r"got list of 2 items; .*, and \(train, valid\) with validation"),
        (NUMBERS, r"got TensorDataset; write DataLoaders.from_datasets\(train_ds, valid_ds"),
        ((NUMBERS, None), r"got TensorDataset: write DataLoader\(data_set, batch_size=64\)"),
        (
            (torch.zeros(8, 3), torch.zeros(8)),
            r"shape \(8, 3\): write TensorLoader\(x, y, batch_si",
        ),
        (None, r"got NoneType; write \(loader, None\) to train without validation"),
    ],
)
def test_what_is_no_pair_of_loaders_is_refused_with_what_to_write(wrong, words):
    with pytest.raises(TypeError, match=words):
        as_dataloaders(wrong)


@pytest.mark.parametrize("one_shot", [iter([1, 2]), (i for i in [1]), zip([1], [2], strict=True)])
def test_an_iterator_that_can_be_used_only_once_is_refused(one_shot):
    with pytest.raises(TypeError, match=r"the training loader can be iterated only once \(\w+\)"):
        DataLoaders(one_shot)
    with pytest.raises(TypeError, match="the validation loader can be iterated only once"):
        DataLoaders([1], one_shot)


def test_classes_are_kept_also_in_a_copy_and_none_is_none():
    dls = DataLoaders([1], classes=("cat", "dog"))
    assert dls.classes == copy.deepcopy(dls).classes == ["cat", "dog"]
    assert DataLoaders([1]).classes is None


@pytest.mark.parametrize("wrong", ["cat", ["cat", 1], [""], 3])
def test_classes_that_are_no_list_of_texts_are_refused(wrong):
    with pytest.raises(TypeError, match="class"):
        DataLoaders([1], classes=wrong)


def test_what_cannot_be_iterated_is_refused():
    with pytest.raises(TypeError, match="expected an iterable of batches as training loader; got"):
        DataLoaders(42)


def test_a_loader_without_batches_is_refused_by_name():
    too_few = DataLoader(NUMBERS, batch_size=N + 1, drop_last=True)
    with pytest.raises(
        ValueError, match=r"the training loader is empty.*drop_last=True with fewer"
    ):
        DataLoaders(too_few)
    with pytest.raises(ValueError, match=r"the validation loader is empty.*pass None to train"):
        DataLoaders([1], [])


def test_a_loader_without_length_is_accepted_and_shown_by_its_type():
    assert repr(DataLoaders(DataLoader(Stream()), [1])) == (
        "DataLoaders(train=DataLoader, valid=1 batches)"
    )


def test_from_datasets_shuffles_training_only_and_drops_only_there():
    dls = DataLoaders.from_datasets(NUMBERS, NUMBERS, batch_size=5, drop_last=True)
    assert isinstance(dls.train.sampler, RandomSampler)
    assert [len(b[0]) for b in dls.train] == [5, 5, 5, 5]
    assert values(dls.valid) == [list(range(10)), list(range(10, 20)), [20, 21, 22]]
    assert len(DataLoaders.from_datasets(NUMBERS, NUMBERS, valid_batch_size=1).valid) == N
    assert DataLoaders.from_datasets(NUMBERS).valid is None


@every_loader
def test_n_batches_is_the_number_of_batches_or_none(make):
    dl = make()
    expected = None if isinstance(getattr(dl, "dataset", None), Stream) else len(list(dl))
    assert n_batches(dl) == expected


@pytest.mark.parametrize("n", [1, 4, 8, 9])
@pytest.mark.parametrize("drop_last", [False, True])
def test_tensor_loader_gives_the_batches_of_a_dataloader(n, drop_last):
    x, y = torch.randn(n, 3), torch.arange(n)
    ours = TensorLoader(x, y, batch_size=4, drop_last=drop_last)
    theirs = DataLoader(TensorDataset(x, y), 4, drop_last=drop_last)
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert isinstance(mine, tuple)
        assert all(map(torch.equal, mine, other))


def test_tensor_loader_shuffles_all_tensors_alike_and_anew_in_each_pass():
    torch.manual_seed(0)
    loader = TensorLoader(torch.arange(100), torch.arange(100) * 10, batch_size=7, shuffle=True)
    first, second = list(loader), list(loader)
    for x, y in first:
        assert torch.equal(y, x * 10)
    orders = [torch.cat([x for x, _ in batches]) for batches in (first, second)]
    assert not torch.equal(*orders)
    for order in orders:
        assert torch.equal(order.sort().values, torch.arange(100))


def test_tensor_loader_alone_is_ordered_by_the_default_generator():
    torch.manual_seed(3)
    expected = torch.randperm(N)
    torch.manual_seed(3)
    loader = TensorLoader(torch.arange(N), batch_size=BATCH, shuffle=True)
    assert torch.equal(torch.cat([x for (x,) in loader]), expected)


def test_tensor_loader_transforms_whole_batches():
    seen = []

    def halve(batch):
        seen.append(len(batch[0]))
        return batch[0] / 2, batch[1]

    loader = TensorLoader(torch.full((5, 2), 8.0), torch.arange(5), batch_size=2, transform=halve)
    assert [x.unique().tolist() for x, _ in loader] == [[4.0]] * 3
    assert seen == [2, 2, 1]


def test_tensor_loader_moves_as_a_new_loader():
    loader = TensorLoader(torch.zeros(5, 2), torch.zeros(5), batch_size=2, shuffle=True)
    moved = loader.to("meta")
    assert [t.device.type for t in moved.tensors] == ["meta", "meta"]
    assert [t.device.type for t in loader.tensors] == ["cpu", "cpu"]
    assert [tuple(x.shape) for x, _ in moved] == [(2, 2), (2, 2), (1, 2)]
    assert loader.to("cpu").tensors[0] is loader.tensors[0]


@pytest.mark.parametrize(
    ("tensors", "kwargs", "message"),
    [
        ((), {}, "expected at least one tensor; got none"),
        ((torch.zeros(3), torch.zeros(4)), {}, r"got the lengths \[3, 4\]"),
        ((torch.zeros(3),), {"batch_size": 0}, "batch_size must be at least 1; got 0"),
    ],
)
def test_tensor_loader_refuses_what_it_cannot_batch(tensors, kwargs, message):
    with pytest.raises(ValueError, match=message):
        TensorLoader(*tensors, **kwargs)


@pytest.mark.parametrize(
    "make",
    [
        lambda size: TensorLoader(torch.arange(N), batch_size=size, shuffle=True),
        lambda size: DataLoader(NUMBERS, batch_sampler=BatchSampler(range(9), size, True)),
        lambda size: DataLoader(NUMBERS, size, shuffle=True, drop_last=True),
        lambda size: DataLoader(NUMBERS, size, sampler=SubsetRandomSampler(range(9))),
        lambda size: DataLoader(NUMBERS, size, collate_fn=lambda rows: torch.stack(rows[0])),
    ],
)
def test_another_batch_size_is_a_loader_made_with_it(make):
    loader = make(4)
    before = pass_over(loader)
    assert pass_over(with_batch_size(loader, 7)) == pass_over(make(7)) != before
    assert pass_over(loader) == before


@pytest.mark.parametrize(
    "loader",
    [
        [1, 2],
        DataLoader(NUMBERS, batch_sampler=[[0, 1], [2]]),
        DataLoader(NUMBERS, None),
        DataLoader(Stream(), 4),
    ],
    ids=["list", "batch sampler", "single samples", "stream"],
)
def test_another_batch_size_is_refused_where_batches_are_made_in_another_way(loader):
    with pytest.raises(TypeError, match="cannot change the batch size of a"):
        with_batch_size(loader, 7)


def test_the_repr_of_a_loader_tells_its_samples_and_their_order():
    loader = TensorLoader(torch.zeros(10, 2), batch_size=4, shuffle=True)
    assert repr(loader) == "TensorLoader(10 samples, shuffled, in batches of 4)"
