"""`preset=bcp` of DSMT-Net does the steps of bidirectional copy-paste, written here once more from its equations."""

from __future__ import annotations

import copy
from collections import deque
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

import nnssl_trainers.frame.two_students
from nnssl.training import checkpoints

CLASSES, BATCH = 3, 4
PATCH = {2: [16, 24], 3: [16, 24, 24]}  # the scans have 20 x 24 x 22 voxels, so that patches have padding
HEADS = (2 / 3, 1 / 3)  # nnU-Net's weights of three outputs: 1, 1/2 and 0 for the coarsest, divided by their sum
FIRST_STEP = {"pre-training": 0, "self-training": 2}  # of a run of 8 iterations


@pytest.fixture
def ready(make_tiny, make_trainer):
    """Return a function that makes a trainer before the first step of a phase, its batch, and its mixing mask."""
    made: list[Any] = []

    def make(dim: int, phase: str = "self-training", **config: Any) -> tuple[Any, dict[str, Any], Tensor]:
        if not made:
            stages = {"n_stages": 4, "features_per_stage": [4, 8, 8, 8], "n_conv_per_stage": [1] * 4}
            stages |= {"n_conv_per_stage_decoder": [1] * 3, "kernel_sizes": [[3] * dim] * 4}
            made.append(make_tiny(dim, PATCH[dim], **stages, strides=[[1] * dim] + [[2] * dim] * 3))
        trainer = make_trainer("DSMTTrainer", dim, num_iterations=8, staged=True, config=config)
        trainer.initialize()
        stream = trainer.get_dataloaders()[0]
        batch = joined(next(stream), next(stream))
        trainer.iteration = FIRST_STEP[phase]
        trainer.set_training_mode()
        for module in trainer.network.modules():
            if isinstance(module, _DropoutNd):
                module.p = 0.0  # so that the reference can repeat the passes
        generator = torch.Generator().manual_seed(4)
        for parameter in trainer.teacher.parameters():  # the teacher is not the student
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        return trainer, batch, drawn_mask(PATCH[dim])

    return make


def joined(one: Any, two: Any) -> Any:
    """Return two batches of the streams as one."""
    if isinstance(one, dict):
        return {key: joined(one[key], two[key]) for key in one if key in ("labelled", "unlabelled", "data", "target")}
    if isinstance(one, list):
        return [joined(*pair) for pair in zip(one, two, strict=True)]
    return torch.cat([one, two])


def drawn_mask(shape: list[int]) -> Tensor:
    """Return the mask M that a step draws with seed 3: 0 in a box with two thirds of each side."""
    torch.manual_seed(3)
    sides = [2 * n // 3 for n in shape]
    starts = [int(torch.randint(n - side, ())) for n, side in zip(shape, sides, strict=True)]
    grid = torch.meshgrid(*[torch.arange(n) for n in shape], indexing="ij")
    ranges = zip(grid, starts, sides, strict=True)
    return 1 - torch.stack([(g >= start) & (g < start + side) for g, start, side in ranges]).all(0).float()


def largest_of_each_class(labels: Tensor) -> Tensor:
    """Return labels (*S) with the largest component of each class, found by filling; neighbours share a corner."""
    kept, source = torch.zeros_like(labels), labels.numpy()
    offsets = list(product((-1, 0, 1), repeat=labels.ndim))
    for k in range(1, CLASSES):
        left, best = set(map(tuple, np.argwhere(source == k))), []
        for start in sorted(left):
            component, waiting = [], deque([start] if start in left else [])
            left.discard(start)
            while waiting:
                voxel = waiting.popleft()
                component.append(voxel)
                near = {tuple(a + b for a, b in zip(voxel, step, strict=True)) for step in offsets} & left
                left -= near
                waiting.extend(near)
            best = component if len(component) > len(best) else best
        for voxel in best:
            kept[voxel] = k
    return kept


def dice_and_ce(logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """Return ½(Dice + CE) of logits (b, C, *S) and labels (b, *S) where the mask (*S) is 1, class by class."""
    probs, mask = logits.softmax(1), mask.expand(labels.shape)
    of_label = sum(probs[:, k] * (labels == k) for k in range(CLASSES))
    cross_entropy = -(mask * of_label.log()).sum() / mask.sum()
    two_d = labels.ndim == 3
    groups = [slice(None)] if two_d else [slice(i, i + 1) for i in range(len(labels))]  # 3-D: each sample by itself
    overlaps = []
    for k, group in product(range(CLASSES), groups):
        p, t, m = probs[group, k], (labels[group] == k).float(), mask[group]
        size = (m * p**2 + m * t**2).sum() if two_d else (m * p + m * t).sum()
        epsilon = 1e-10 if two_d else 1e-5
        overlaps.append((2 * (m * p * t).sum() + epsilon) / (size + epsilon))
    return 0.5 * (1 - sum(overlaps) / len(overlaps) + cross_entropy)


def segmentation_loss(heads: list[Tensor], outside: Tensor, inside: Tensor, mask: Tensor, w_out: float, w_in: float):
    """Return w_out·L_M(outside) + w_in·L_(1 − M)(inside); the second output sees every second voxel."""
    total = 0.0
    for index, weight in enumerate(HEADS):
        every = (..., *[slice(index, None, 1 + index)] * mask.ndim)
        out, into, m = outside[every], inside[every], mask[every]
        assert heads[index].shape[2:] == m.shape
        loss = w_out * dice_and_ce(heads[index], out, m) + w_in * dice_and_ce(heads[index], into, 1 - m)
        total = total + weight * loss
    return total


def reference_loss(student: nn.Module, teacher: nn.Module, batch: dict[str, Any], mask: Tensor, phase: str) -> Tensor:
    """Return the loss of one step of Bai et al., CVPR 2023, on the halves of a batch."""
    x, y = batch["labelled"]["data"], batch["labelled"]["target"][0][:, 0].long()
    first, second = slice(0, BATCH // 2), slice(BATCH // 2, BATCH)
    if phase == "pre-training":
        mixed = mask * x[first] + (1 - mask) * x[second]
        return segmentation_loss(student(mixed), y[first], y[second], mask, 1.0, 1.0)
    weak, strong = batch["unlabelled"]["data"].chunk(2, 1)
    scan = (batch["unlabelled"]["target"] >= 0)[:, 0]
    with torch.no_grad():
        guess = torch.cat([teacher(weak[half])[0].argmax(1) for half in (first, second)]) * scan
    cleaned = torch.stack([largest_of_each_class(labels) for labels in guess])
    assert not scan.all()
    assert (cleaned != guess).any()
    assert set(cleaned.unique().tolist()) > {0}
    b, a, u_a, u_b = first, second, first, second  # the half with forced foreground goes into the unlabelled patches
    x_in, x_out = mask * x[b] + (1 - mask) * strong[u_b], mask * strong[u_a] + (1 - mask) * x[a]  # eq. 1-2
    loss_in = segmentation_loss(student(x_in), y[b], cleaned[u_b], mask, 1.0, 0.5)
    return loss_in + segmentation_loss(student(x_out), cleaned[u_a], y[a], mask, 0.5, 1.0)


@pytest.mark.parametrize("network", ["plan", "bcp"])
@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("phase", FIRST_STEP)
def test_a_step_is_that_of_bidirectional_copy_paste(phase: str, dim: int, network: str, ready) -> None:
    trainer, batch, mask = ready(dim, phase, preset="bcp", network=network)
    student, teacher = copy.deepcopy(trainer.network), copy.deepcopy(trainer.teacher)
    expected = reference_loss(student, teacher, batch, mask, phase)
    expected.backward()
    torch.manual_seed(3)
    loss = trainer.train_step(batch)["loss"]
    torch.testing.assert_close(loss, expected.detach())
    gradients = {name: parameter.grad for name, parameter in student.named_parameters() if parameter.grad is not None}
    norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    assert 1e-3 < norm < 12  # from 12 on nnU-Net clips
    found = {name: p.grad for name, p in trainer.network.named_parameters() if p.grad is not None}
    assert found.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5 * norm.item())
    learned = dict(trainer.network.named_parameters())
    for name, parameter in student.named_parameters():  # nnU-Net's SGD: the first step of momentum 0.99 with Nesterov
        step = 0.0 if parameter.grad is None else 0.01 * 1.99 * (parameter.grad + 3e-5 * parameter.detach())
        torch.testing.assert_close(learned[name].detach(), parameter.detach() - step, rtol=1e-4, atol=1e-5)
    follow = 1.0 if phase == "pre-training" else 0.01
    now, old = trainer.network.state_dict(), teacher.state_dict()
    for name, value in trainer.teacher.state_dict().items():
        moved = (1 - follow) * old[name] + follow * now[name] if value.is_floating_point() else now[name]
        torch.testing.assert_close(value, moved)


@pytest.mark.parametrize("dim", [2, 3])
def test_student_1_of_dsmt_without_contrast_learns_the_same_times_alpha(dim: int, ready) -> None:
    alone, batch, _ = ready(dim, preset="bcp")
    paper = {"preset": "paper", "network": "plan", "student2": "plan", "contrast_weight": 0.0}
    both, _, _ = ready(dim, **paper)
    both.network.load_state_dict(alone.network.state_dict())
    both.teacher.load_state_dict(alone.teacher.state_dict())
    found = []
    for trainer in (alone, both):
        torch.manual_seed(3)
        found.append(trainer.losses_of_step(trainer._move_to_device(batch)))
    assert [set(terms) for terms in found] == [{"supervised_1"}, {"supervised_1", "supervised_2"}]
    torch.testing.assert_close(found[1]["supervised_1"], 0.5 * found[0]["supervised_1"])  # α begins with 0.5


def test_there_is_no_second_student(make_trainer, monkeypatch) -> None:
    built: list[nn.Module] = []
    build = nnssl_trainers.frame.two_students.build_network
    monkeypatch.setattr(
        nnssl_trainers.frame.two_students,
        "build_network",
        lambda *arguments, **options: built.append(build(*arguments, **options)) or built[-1],
    )
    trainer = make_trainer("DSMTTrainer", 2, num_iterations=8, epoch=4, staged=True, config={"preset": "bcp"})
    trainer.run_training()
    assert [id(network) for network in built] == [id(trainer.network), id(trainer.teacher)]
    networks = [value for value in vars(trainer).values() if isinstance(value, nn.Module) and list(value.parameters())]
    assert {id(network) for network in networks} == {id(trainer.network), id(trainer.teacher)}
    assert trainer.network2 is None
    latest = checkpoints.load(Path(trainer.output_folder) / "checkpoint_latest.pth")["nnssl_semi"]["state"]
    assert not any("2" in key for key in latest)
    assert {"student", "teacher"} <= latest.keys()
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(trainer.output_folder_base, None)
    assert type(predictor.network).__name__ == "PlainConvUNet"
    trained = trainer.network.state_dict()
    assert all(torch.equal(value, trained[key]) for key, value in predictor.network.state_dict().items())


def test_the_schedule_is_a_quarter_of_pretraining_on_labels(make_trainer) -> None:
    trainer = make_trainer("DSMTTrainer", 2, num_iterations=400, staged=True, config={"preset": "bcp"})
    assert (trainer.supervised_iterations, trainer.pretrain_iterations) == (0, 100)
    trainer.initialize()
    assert trainer.method_begin == 0
    assert [trainer.loss_weights(step)[0] for step in (-1, 0, 99, 100, 400)] == [1.0] * 5
    assert [trainer.learning_rate_factors(step) for step in (0, 100)] == [[1.0], [1.0]]
