from __future__ import annotations

import pytest
import torch

from nnssl.ingredients.mixing import (
    block_mask,
    copy_paste,
    copy_paste_mask,
    cutmix_box,
    cutmix_rectangle,
    cutmix_sides,
    draw_cutmix_boxes,
    predominant_mixup,
)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def box_of(mask: torch.Tensor) -> tuple[list[int], list[int]]:
    """Return the first corner and the side lengths of the box, after checking that it is the only thing in the mask."""
    inside = (mask[0, 0] == 0).nonzero()
    first, last = inside.min(0).values, inside.max(0).values
    sides = (last - first + 1).tolist()
    assert inside.shape[0] == torch.tensor(sides).prod()
    assert (mask == 1).sum() == mask.numel() - inside.shape[0]
    return first.tolist(), sides


@pytest.mark.parametrize(
    ("shape", "sides"),
    [((6, 6), [4, 4]), ((256, 256), [170, 170]), ((112, 112, 80), [74, 74, 53]), ((7, 5, 3), [4, 3, 2])],
)
def test_side_lengths(shape: tuple[int, ...], sides: list[int]) -> None:
    mask = copy_paste_mask(shape, generator=seeded(1))
    assert mask.shape == (1, 1, *shape)
    assert mask.dtype == torch.float32
    assert box_of(mask)[1] == sides


def test_offsets_never_reach_the_far_border_and_take_every_other_value() -> None:
    generator = seeded(2)
    starts = [box_of(copy_paste_mask((6, 8), 0.5, generator))[0] for _ in range(120)]
    assert {start[0] for start in starts} == {0, 1, 2}  # 6 − 3 = 3 is excluded
    assert {start[1] for start in starts} == {0, 1, 2, 3}
    assert len({tuple(start) for start in starts}) == 12  # the axes are drawn independently


def test_smallest_box_is_at_the_origin() -> None:
    mask = copy_paste_mask((3, 3))
    assert box_of(mask) == ([0, 0], [2, 2])
    assert mask.mean().item() == pytest.approx(5 / 9)


@pytest.mark.parametrize(("ratio", "mean"), [(0.0, 1.0), (1.0, 0.0)])
def test_no_box_and_all_box(ratio: float, mean: float) -> None:
    assert copy_paste_mask((4, 5, 3), ratio).mean().item() == mean


@pytest.mark.parametrize("ratio", [-0.1, 1.1])
def test_ratio_outside_its_range(ratio: float) -> None:
    with pytest.raises(ValueError, match="ratio"):
        copy_paste_mask((4, 4), ratio)


def test_the_generator_alone_decides() -> None:
    masks = [copy_paste_mask((64, 64), generator=seeded(5)) for _ in range(2)]
    assert torch.equal(*masks)
    torch.manual_seed(7)
    first = copy_paste_mask((64, 64))
    torch.manual_seed(7)
    copy_paste_mask((64, 64), generator=seeded(0))  # leaves the global generator alone
    assert torch.equal(copy_paste_mask((64, 64)), first)


@pytest.mark.parametrize("shape", [(2, 3, 5, 6), (2, 1, 4, 5, 3)])
def test_every_voxel_comes_from_one_image(shape: tuple[int, ...]) -> None:
    outside, inside = torch.randn(shape, generator=seeded(3)), torch.randn(shape, generator=seeded(4))
    mask = copy_paste_mask(shape[2:], generator=seeded(6))
    mixed = copy_paste(outside, inside, mask)
    for index in torch.cartesian_prod(*[torch.arange(n) for n in shape]).tolist():
        source = outside if mask[(0, 0, *index[2:])] == 1 else inside
        assert mixed[tuple(index)] == source[tuple(index)]
    torch.testing.assert_close(copy_paste(inside, outside, 1 - mask), mixed)


def test_types_labels_and_gradients() -> None:
    mask = copy_paste_mask((3, 3))
    for dtype in (torch.float16, torch.float64, torch.int64):
        mixed = copy_paste(torch.full((2, 3, 3), 2, dtype=dtype), torch.zeros(2, 3, 3, dtype=dtype), mask[:, 0] > 0)
        assert mixed.dtype == dtype
        assert mixed[1].tolist() == [[0, 0, 2], [0, 0, 2], [2, 2, 2]]
    outside, inside = torch.rand(2, 1, 3, 3, requires_grad=True), torch.rand(2, 1, 3, 3, requires_grad=True)
    copy_paste(outside, inside, mask).sum().backward()
    assert torch.equal(outside.grad, mask.expand(2, 1, 3, 3))
    assert torch.equal(inside.grad, 1 - mask.expand(2, 1, 3, 3))


@pytest.mark.parametrize("shape", [(3, 2, 4, 5), (2, 1, 3, 4, 5)])
def test_mixup_is_mostly_unlabelled_row_by_row(shape: tuple[int, ...]) -> None:
    u, z = (torch.randn(shape, generator=seeded(seed), dtype=torch.float64) for seed in (1, 2))
    mixed, weights = predominant_mixup(u, z, 0.75, seeded(3))
    assert weights.shape == shape[:1]
    assert mixed.dtype == torch.float64
    for i, weight in enumerate(weights.tolist()):
        assert 0.5 <= weight <= 1.0
        torch.testing.assert_close(mixed[i], weight * u[i] + (1 - weight) * z[i])
    assert weights.unique().numel() == len(weights)


@pytest.mark.parametrize("drawn", [0.3, 0.8])
def test_mixup_hand_values(drawn: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "_sample_dirichlet", lambda *_: torch.tensor([[drawn, 1 - drawn]]))
    u, z = torch.tensor([[[1.0, -2.0, 0.5]]]), torch.tensor([[[3.0, 0.0, -1.5]]])
    mixed, weights = predominant_mixup(u, z, 0.75)
    expected = {0.3: [1.6, -1.4, -0.1], 0.8: [1.4, -1.6, 0.1]}[drawn]
    assert mixed.flatten().tolist() == pytest.approx(expected)
    assert weights.item() == pytest.approx(max(drawn, 1 - drawn))


@pytest.mark.parametrize(("alpha", "mean"), [(0.2, 0.8988), (0.5, 0.8183), (0.75, 0.7782), (1.0, 0.75)])
def test_mixup_weights_follow_the_beta_distribution(alpha: float, mean: float) -> None:
    _, weights = predominant_mixup(torch.zeros(100_000, 1), torch.zeros(100_000, 1), alpha, seeded(4))
    assert weights.mean().item() == pytest.approx(mean, abs=0.005)
    assert weights.min() >= 0.5
    assert weights.max() <= 1.0


def test_mixup_is_reproducible_and_checks_alpha() -> None:
    u, z = torch.ones(4, 1, 2), torch.zeros(4, 1, 2)
    assert torch.equal(predominant_mixup(u, z, 0.75, seeded(5))[0], predominant_mixup(u, z, 0.75, seeded(5))[0])
    with pytest.raises(ValueError, match="alpha must be positive"):
        predominant_mixup(u, z, 0.0)


@pytest.mark.parametrize(
    ("shape", "area", "ratios", "sides"),
    [
        ((256, 256), 0.02, [1.0], [36, 36]),
        ((256, 256), 0.4, [1.0], [161, 161]),
        ((256, 256), 0.2, [0.3], [62, 209]),
        ((64, 64, 64), 0.125, [1.0, 1.0], [32, 32, 32]),
        ((4, 4), 0.001, [1.0], [1, 1]),
    ],
)
def test_sides_of_the_cutmix_box(shape: tuple[int, ...], area: float, ratios: list[float], sides: list[int]) -> None:
    assert cutmix_sides(shape, area, ratios) == sides


def test_cutmix_pastes_a_box_of_the_partner() -> None:
    labels = torch.arange(16.0).view(1, 1, 4, 4)
    for seed in range(50):
        mask = cutmix_rectangle((4, 4), 1.0, generator=seeded(seed), sides=(2, 2))
        if box_of(mask)[0] == [1, 0]:
            break
    pasted = copy_paste(labels, -labels, mask)[0, 0].tolist()
    assert pasted == [[0, 1, 2, 3], [-4, -5, 6, 7], [-8, -9, 10, 11], [12, 13, 14, 15]]


@pytest.mark.parametrize("shape", [(40, 56), (16, 24, 20)])
def test_cutmix_boxes_keep_their_share_and_are_absent_as_often_as_asked(shape: tuple[int, ...]) -> None:
    generator = seeded(11)
    shares = [1 - cutmix_rectangle(shape, generator=generator).mean().item() for _ in range(300)]
    present = [share for share in shares if share]
    assert 0.4 < len(present) / 300 < 0.6
    assert 0.01 < min(present) < 0.06
    assert 0.3 < max(present) <= 0.4
    assert cutmix_rectangle(shape, 0.0).min() == 1
    box_of(cutmix_rectangle(shape, 1.0, generator=generator))


@pytest.mark.parametrize(
    ("length", "centre", "expected"), [(112, 56, (17, 95)), (112, 20, (0, 59)), (80, 79, (51, 80)), (4, 0, (0, 1))]
)
def test_cutmix_box_by_hand(length: int, centre: int, expected: tuple[int, int]) -> None:
    assert cutmix_box([length, 8], 0.5, [centre, 4]) == [slice(*expected), slice(2, 6)]


def test_cutmix_pastes_the_box() -> None:
    image = torch.arange(16).view(1, 1, 4, 4).float()
    mask = torch.ones(1, 1, 4, 4)
    mask[(slice(None), slice(None), *cutmix_box((4, 4), 0.75, (2, 2)))] = 0
    assert copy_paste(image, -image, mask)[0, 0].tolist() == [
        [0, 1, 2, 3],
        [4, -5, -6, 7],
        [8, -9, -10, 11],
        [12, 13, 14, 15],
    ]


@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0])
def test_cutmix_box_stays_in_the_image(lam: float) -> None:
    for centre in range(9):
        (box, empty) = cutmix_box((9, 1), lam, (centre, 0))
        side = int(9 * (1 - lam) ** 0.5) // 2
        assert list(range(9))[box] == [i for i in range(9) if centre - side <= i < centre + side]
        assert empty == slice(0, 0)
    with pytest.raises(ValueError, match="lam"):
        cutmix_box((4, 4), 1.5, (2, 2))


@pytest.mark.parametrize(("shape", "share"), [((64, 64), 0.354), ((64, 64, 64), 0.217)])
def test_mean_share_of_the_cutmix_boxes(shape: tuple[int, ...], share: float) -> None:
    generator, voxels = seeded(0), 0
    for _ in range(1500):
        (box, other) = draw_cutmix_boxes(shape, 2, generator)
        sides = [part.stop - part.start for part in box]
        voxels += torch.tensor(sides).prod().item()
        assert all(part.stop >= 8 // 2 for part in box + other)
    assert voxels / 1500 / 64 ** len(shape) == pytest.approx(share, abs=0.02)


def test_cutmix_boxes_of_one_step_have_one_size_and_different_places() -> None:
    boxes = draw_cutmix_boxes((4000, 4000), 20, seeded(1))
    inner = [b for box in boxes for b in box if b.start > 0 and b.stop < 4000]
    assert len({b.stop - b.start for b in inner}) == 1
    assert len({b.start for b in inner}) > 5


def test_block_mask_by_hand() -> None:
    draws = torch.tensor([[0.1, 0.6], [0.8, 0.3]])
    mask = block_mask((4, 4), 0.5, uniform=draws)
    assert mask.shape == (1, 1, 4, 4)
    assert mask[0, 0].tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0]]
    line = torch.tensor([[0.0], [1.0], [0.0], [1.0]])
    assert block_mask((10, 1), 0.5, uniform=line)[0, 0, :, 0].tolist() == [0, 0, 0, 1, 1, 0, 0, 0, 1, 1]


@pytest.mark.parametrize("shape", [(64, 48), (32, 16, 80), (3, 40)])
def test_block_mask_keeps_whole_blocks(shape: tuple[int, ...]) -> None:
    mask = block_mask(shape, 0.5, generator=seeded(2))
    assert torch.equal(mask, block_mask(shape, 0.5, generator=seeded(2)))
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    for axis, length in enumerate(shape, start=2):
        border = [i for i in range(1, length) if not torch.equal(mask.select(axis, i - 1), mask.select(axis, i))]
        blocks = min(16, length)
        assert {i * blocks // length - (i - 1) * blocks // length for i in border} <= {1}


def test_share_of_the_kept_blocks() -> None:
    assert block_mask((16, 16, 16), 0.7, generator=seeded(0)).mean().item() == pytest.approx(0.3, abs=0.03)
    assert block_mask((4, 4), 1.0, generator=seeded(0)).sum() == 0
    with pytest.raises(ValueError, match="ratio"):
        block_mask((4, 4), 1.1)
