from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnssl.inference.predictor import Predictor
from nnssl.inference.tiles import CPU_VOXELS, GPU_VOXELS, add_tiles, images_a_pass, mirrored_mean
from tests.inference.model_for_tests import write_model

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("tile", "device", "images"),
    [
        ((128, 96), CPU, 8),
        ((256, 224), CPU, 1),
        ((64, 64), CPU, CPU_VOXELS // 4096),
        ((1024, 1024), CPU, 1),
        ((16, 16, 16), CPU, 2),
        ((128, 128, 128), CPU, 2),
        ((128, 128, 128), GPU, 2),
        ((512, 512), GPU, 16),
        ((192, 192, 192), GPU, 1),
        ((1, GPU_VOXELS), GPU, 1),
    ],
)
def test_images_a_pass(tile: tuple[int, ...], device: torch.device, images: int) -> None:
    assert images_a_pass(tile, device) == images


def naive_mean(network: torch.nn.Module, tile: torch.Tensor, axes: tuple[int, ...]) -> torch.Tensor:
    """Return the mean over all mirrored copies of one tile, one copy at a time."""
    total, copies = torch.zeros(()), 0
    for mirrored in itertools.product([False, True], repeat=len(axes)):
        dims = [axis + 2 for axis, chosen in zip(axes, mirrored, strict=True) if chosen]
        total = total + network(tile.flip(dims)).flip(dims)
        copies += 1
    return total / copies


@pytest.mark.parametrize("axes", [(), (0,), (0, 1), (1, 2), (0, 1, 2)])
@pytest.mark.parametrize(("tiles", "images"), [(1, 1), (1, 3), (1, 16), (2, 2), (3, 7), (2, 16)])
def test_the_mean_is_that_of_single_copies_and_passes_hold_no_more_images(
    axes: tuple[int, ...], tiles: int, images: int
) -> None:
    torch.manual_seed(0)
    network = torch.nn.Conv3d(2, 3, 3, padding=1)
    batch = torch.randn(tiles, 2, 5, 6, 7)
    sizes = []

    def counted(images_in: torch.Tensor) -> torch.Tensor:
        sizes.append(len(images_in))
        return network(images_in)

    with torch.inference_mode():
        mean = mirrored_mean(counted, batch, axes, images)
        true = torch.cat([naive_mean(network, tile[None], axes) for tile in batch])
    assert mean.shape == (tiles, 3, 5, 6, 7)
    assert torch.allclose(mean, true, atol=1e-6)
    assert sum(sizes) == tiles * 2 ** len(axes)
    assert max(sizes) <= images
    assert len(sizes) == -(-(2 ** len(axes)) // (images // tiles))


def test_tiles_are_added_in_order_and_none_is_lost() -> None:
    data = torch.arange(7.0).reshape(1, 7, 1, 1)
    seen, sizes = [], []

    def logits_of(tiles: torch.Tensor, images: int) -> torch.Tensor:
        sizes.append((len(tiles), images))
        return tiles * 2

    slicers = [(slice(None), place) for place in range(7)]
    add_tiles(logits_of, data, slicers, 3, lambda place, logits: seen.append((place[1], float(logits))))
    assert seen == [(place, 2.0 * place) for place in range(7)]
    assert sizes == [(3, 3), (3, 3), (1, 3)]


def test_a_batch_that_does_not_fit_is_halved_until_it_fits() -> None:
    data = torch.arange(7.0).reshape(1, 7, 1, 1)
    seen, sizes = [], []

    def logits_of(tiles: torch.Tensor, images: int) -> torch.Tensor:
        sizes.append(images)
        if images > room:
            raise torch.cuda.OutOfMemoryError
        return tiles

    slicers = [(slice(None), place) for place in range(7)]
    room = 2
    add_tiles(logits_of, data, slicers, 8, lambda place, logits: seen.append(place[1]))
    assert seen == list(range(7))
    assert sizes == [8, 4, 2, 2, 2, 2]
    room = 0
    with pytest.raises(torch.cuda.OutOfMemoryError):
        add_tiles(logits_of, data, slicers, 8, lambda place, logits: seen.append(place[1]))


@pytest.mark.parametrize("mirroring", [True, False])
@pytest.mark.parametrize(("dim", "shape"), [(2, (7, 37, 29)), (3, (23, 37, 29)), (3, (16, 16, 16)), (2, (1, 9, 40))])
def test_logits_of_many_tiles_are_those_of_stock_nnunet(
    results, dim: int, shape: tuple[int, ...], mirroring: bool
) -> None:
    model = write_model(results, dim=dim)
    ours = Predictor.from_folder(model, device="cpu", mirroring=mirroring)
    stock = nnUNetPredictor(use_mirroring=mirroring, device=CPU, allow_tqdm=False)
    stock.initialize_from_trained_model_folder(str(model), (0,))
    scan = torch.randn(1, *shape, generator=torch.Generator().manual_seed(1))
    mine, true = (predictor.predict_logits_from_preprocessed_data(scan).float().numpy() for predictor in (ours, stock))
    assert mine.shape == true.shape == (3, *shape)
    assert np.abs(true).max() > 1
    np.testing.assert_allclose(mine, true, atol=2e-3 * np.abs(true).max())  # a step of half precision
    assert np.mean(mine.argmax(0) != true.argmax(0)) < 1e-3


def test_logits_beyond_half_precision_are_an_error(results) -> None:
    predictor = Predictor.from_folder(write_model(results, dim=2), device="cpu")
    weights = predictor.list_of_parameters[0]
    head = [name for name in weights if "seg_layers" in name and name.endswith("bias")][-1]
    weights[head] = torch.full_like(weights[head], 1e6)
    with pytest.raises(RuntimeError, match="half precision"):
        predictor.predict_logits_from_preprocessed_data(torch.randn(1, 2, 16, 16))
