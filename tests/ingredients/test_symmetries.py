from __future__ import annotations

import pytest
import torch

from nnssl.ingredients.symmetries import Symmetry, apply_symmetries, draw_symmetries


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_hand_values() -> None:
    patch = torch.tensor([[0, 1], [2, 3]])[None, None]
    assert apply_symmetries(patch, [Symmetry((0,))])[0, 0].tolist() == [[2, 3], [0, 1]]
    assert apply_symmetries(patch, [Symmetry((1,))])[0, 0].tolist() == [[1, 0], [3, 2]]
    assert apply_symmetries(patch, [Symmetry((), 1)])[0, 0].tolist() == [[1, 3], [0, 2]]
    assert apply_symmetries(patch, [Symmetry((0,), 2)])[0, 0].tolist() == [[1, 0], [3, 2]]


@pytest.mark.parametrize("shape", [(3, 2, 6, 6), (3, 2, 4, 6, 6)])
def test_images_and_labels_move_together_and_gradients_go_through(shape: tuple[int, ...]) -> None:
    labels = torch.randint(0, 5, (shape[0], 1, *shape[2:]), generator=seeded(1))
    image = (labels.float() * 2).expand(shape).clone().requires_grad_()
    axes = (len(shape) - 4, len(shape) - 3)
    drawn = draw_symmetries(shape[0], range(len(shape) - 2), axes, seeded(3))
    moved, moved_labels = apply_symmetries(image, drawn), apply_symmetries(labels, drawn)
    assert torch.equal(moved, (moved_labels.float() * 2).expand(shape))
    moved.sum().backward()
    assert torch.equal(image.grad, torch.ones_like(image))


def test_every_allowed_symmetry_is_drawn_and_no_other() -> None:
    drawn = draw_symmetries(400, (0, 2), (1, 2), seeded(5))
    assert {symmetry.flipped for symmetry in drawn} == {(), (0,), (2,), (0, 2)}
    assert {symmetry.quarter_turns for symmetry in drawn} == {0, 1, 2, 3}
    assert {symmetry.plane for symmetry in drawn} == {(1, 2), (2, 1)}
    assert set(draw_symmetries(20, (), (1,), seeded(5))) == {Symmetry()}
    assert draw_symmetries(9, (0, 1), (0, 1), seeded(7)) == draw_symmetries(9, (0, 1), (0, 1), seeded(7))
