from __future__ import annotations

import pytest
import torch
from torch import nn

from nnssl.ingredients.ema import aggregate, ema_update, shrink, warmed_up_decay


def network(dim: int = 2) -> nn.Module:
    conv, norm = (nn.Conv2d, nn.BatchNorm2d) if dim == 2 else (nn.Conv3d, nn.BatchNorm3d)
    return nn.Sequential(conv(1, 3, 3), norm(3), conv(3, 2, 1))


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("decay", [0.0, 0.3, 0.99, 1.0])
def test_every_float_tensor_is_the_weighted_mean(dim: int, decay: float) -> None:
    teacher, student = network(dim), network(dim)
    student(torch.randn(2, 1, *[8] * dim))  # moves the running statistics and the integer counter
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    ema_update(teacher, student, decay)
    for name, tensor in teacher.state_dict().items():
        theirs = student.state_dict()[name]
        expected = decay * before[name] + (1 - decay) * theirs if tensor.is_floating_point() else theirs
        torch.testing.assert_close(tensor, expected)
    assert teacher[1].num_batches_tracked == 1


def test_hand_value() -> None:
    teacher, student = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    nn.init.constant_(teacher.weight, 1.0)
    nn.init.constant_(student.weight, 3.0)
    ema_update(teacher, student, 0.75)
    assert teacher.weight.item() == pytest.approx(1.5)
    assert student.weight.item() == 3.0


def test_no_graph_reaches_the_student() -> None:
    teacher, student = network(), network()
    teacher.requires_grad_(False)
    ema_update(teacher, student, 0.5)
    assert all(parameter.grad_fn is None for parameter in teacher.parameters())


@pytest.mark.parametrize("decay", [-0.1, 1.1])
def test_decay_outside_its_range(decay: float) -> None:
    with pytest.raises(ValueError, match="decay"):
        ema_update(network(), network(), decay)


def test_different_architectures() -> None:
    with pytest.raises(ValueError, match="architecture"):
        ema_update(nn.Linear(2, 2), nn.Linear(2, 3), 0.5)


def test_warm_up_is_a_plain_mean_first() -> None:
    assert [warmed_up_decay(step, 0.9) for step in (0, 1, 3, 9, 50)] == pytest.approx([0.0, 0.5, 0.75, 0.9, 0.9])
    values = torch.tensor([4.0, 2.0, 9.0])
    mean = 0.0
    for step, value in enumerate(values.tolist()):
        decay = warmed_up_decay(step, 0.99)
        mean = decay * mean + (1 - decay) * value
    assert mean == pytest.approx(values.mean().item())


def test_parameters_alone() -> None:
    teacher, student = network(), network()
    student(torch.randn(2, 1, 8, 8))
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    ema_update(teacher, student, 0.3, buffers=False)
    for name, buffer in teacher.named_buffers():
        assert torch.equal(buffer, before[name])
    for (name, parameter), theirs in zip(teacher.named_parameters(), student.parameters(), strict=True):
        torch.testing.assert_close(parameter, 0.3 * before[name] + 0.7 * theirs)


def test_a_running_mean_at_first() -> None:
    teacher, student = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    nn.init.zeros_(teacher.weight)
    nn.init.ones_(student.weight)
    found = []
    for step in range(1, 5):
        ema_update(teacher, student, warmed_up_decay(step, 0.99))
        found.append(teacher.weight.item())
    assert found == pytest.approx([0.5, 2 / 3, 0.75, 0.8])
    nn.init.zeros_(teacher.weight)
    ema_update(teacher, student, warmed_up_decay(500, 0.99))
    assert teacher.weight.item() == pytest.approx(0.01)


def test_shrinking_takes_every_float_tensor() -> None:
    student = network()
    student(torch.randn(2, 1, 8, 8))
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    shrink(student, 2e-4)
    for name, tensor in student.state_dict().items():
        torch.testing.assert_close(tensor, before[name] * 0.9998 if tensor.is_floating_point() else before[name])
    assert all(parameter.grad_fn is None and parameter.requires_grad for parameter in student.parameters())


def test_aggregation_moves_shared_parameters_to_the_mean() -> None:
    target, first, second = (nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)) for _ in range(3))
    second.append(nn.Linear(3, 1))
    target.append(nn.Linear(3, 2))  # of another shape than that of `second`, and `first` has none
    old = {name: value.clone() for name, value in target.state_dict().items()}
    first[1].running_mean.fill_(5.0)
    aggregate(target, [first, second], 0.9)
    for name, value in target.state_dict().items():
        expected = old[name]
        if name in ("0.weight", "0.bias", "1.weight", "1.bias"):
            expected = 0.9 * expected + 0.1 * (first.state_dict()[name] + second.state_dict()[name]) / 2
        torch.testing.assert_close(value, expected)
    with pytest.raises(ValueError, match="decay"):
        aggregate(target, [first], 1.5)
