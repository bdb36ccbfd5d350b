"""Weights with channels last: those of 3D convolutions, and nothing else."""

import torch
from torch import nn

from rhofast.models.memory_format import to_channels_last


def test_only_weights_of_3d_convolutions_change_their_layout() -> None:
    network = nn.Sequential(nn.Conv3d(4, 8, 3), nn.BatchNorm3d(8), nn.Conv2d(4, 8, 3), nn.Linear(4, 8))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    parameters = list(network.parameters())
    assert to_channels_last(network) is network
    assert all(one is other for one, other in zip(network.parameters(), parameters, strict=True))
    assert network[0].weight.is_contiguous(memory_format=torch.channels_last_3d)
    assert network[2].weight.is_contiguous() and network[3].weight.is_contiguous()
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])


def test_it_is_what_torch_does_where_torch_does_it() -> None:
    ours, theirs = nn.Conv3d(2, 4, 3), nn.Conv3d(2, 4, 3)
    to_channels_last(ours)
    theirs.to(memory_format=torch.channels_last_3d)
    assert ours.weight.stride() == theirs.weight.stride()
