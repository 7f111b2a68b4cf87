import pytest
import torch
from torch import nn

from onecycle.optim.sharded import check_elementwise, is_sharded, part_of, parts_of, whole


def test_plain_tensors_pass_as_they_are():
    state = {"a": [torch.ones(2), 3], "b": None}
    made = whole(state)
    assert made["a"][0] is state["a"][0]
    assert not is_sharded(state["a"][0])
    assert part_of(state["a"][0], torch.zeros(2)) is state["a"][0]
    own = nn.Linear(2, 2).state_dict()
    assert parts_of(own, own) is own


@pytest.fixture
def mesh(tmp_path):
    """One process that is a job: its part is all."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1
    )
    from torch.distributed.device_mesh import init_device_mesh

    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_what_is_cut_is_whole_again(mesh):
    from torch.distributed.tensor import Shard, distribute_tensor

    tensor = torch.arange(6.0).view(3, 2)
    cut = distribute_tensor(tensor, mesh, [Shard(0)])
    assert is_sharded(cut)
    made = part_of(tensor + 1, cut)
    assert is_sharded(made)
    assert torch.equal(whole({"x": made})["x"], tensor + 1)
    assert whole(made, keeps=False).numel() == 0
    assert part_of(torch.ones(2), cut).shape == (2,)  # of another shape: none of its parts
    state = nn.Linear(2, 3, bias=False).state_dict()
    own = {"weight": cut}
    assert is_sharded(parts_of(state, own)["weight"])
    assert parts_of(state, own)._metadata == state._metadata
    opt = torch.optim.Rprop([nn.Parameter(cut)])
    with pytest.raises(ValueError, match="Rprop may need them whole"):
        check_elementwise(opt)
    check_elementwise(torch.optim.AdamW([nn.Parameter(cut)]))
