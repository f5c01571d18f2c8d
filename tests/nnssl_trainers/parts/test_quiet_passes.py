from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from nnssl_trainers.parts.quiet_passes import quiet_passes


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout2d(0.5), nn.InstanceNorm2d(4))


def test_batch_statistics_without_a_trace() -> None:
    net, x = network(), torch.randn(3, 1, 8, 8)
    before = copy.deepcopy(net.state_dict())
    with quiet_passes([net]):
        first, second = net(x), net(x)
    assert torch.equal(first, second)  # no dropout
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    y = net[0](x)
    y = (y - y.mean((0, 2, 3), keepdim=True)) / (y.var((0, 2, 3), keepdim=True, correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(first, net[3](y))
    assert all(module.training for module in net.modules())
    net(x)
    assert net[1].num_batches_tracked == 1
    assert not torch.equal(before["1.running_mean"], net[1].running_mean)


def test_inference_mode_stays_and_an_error_restores() -> None:
    net, x = network().eval(), torch.randn(3, 1, 8, 8)
    expected = net(x)
    with pytest.raises(RuntimeError, match="inside"), quiet_passes([net]):
        assert torch.equal(net(x), expected)
        raise RuntimeError("inside")
    assert net[1].track_running_stats
    assert not any(module.training for module in net.modules())
