from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest

from nnssl.errors import DataError
from nnssl.evaluation.metrics import overlap_counts, segmentation_metrics, surface, voxel_metrics

NUMBERS = ("dice", "jaccard", "hd95_mm", "assd_mm", "nsd")


def naive_surface_points(mask):
    """Voxels of the mask with a face neighbour that is outside the mask or outside the image."""
    points = []
    for index in product(*map(range, mask.shape)):
        if not mask[index]:
            continue
        for axis, step in product(range(mask.ndim), (-1, 1)):
            other = list(index)
            other[axis] += step
            if not 0 <= other[axis] < mask.shape[axis] or not mask[tuple(other)]:
                points.append(index)
                break
    return np.array(points, dtype=float).reshape(-1, mask.ndim)


def naive_distances(first, second, spacing):
    """Distances of every surface voxel to the nearest of the other mask, from the full matrix of pairs."""
    ours, theirs = (naive_surface_points(mask) * spacing for mask in (first, second))
    pairs = np.sqrt(((ours[:, None] - theirs[None]) ** 2).sum(-1))
    return pairs.min(1), pairs.min(0)


def naive_percentile(values, percent):
    """Percentile by linear interpolation between the sorted values."""
    ordered = sorted(values)
    position = (len(ordered) - 1) * percent / 100
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def naive_metrics(prediction, reference, spacing, tolerance):
    to_reference, to_prediction = naive_distances(prediction, reference, spacing)
    pooled = [*to_reference, *to_prediction]
    both, either = (prediction & reference).sum(), (prediction | reference).sum()
    return {
        "dice": 2 * both / (prediction.sum() + reference.sum()),
        "jaccard": both / either,
        "hd95_mm": max(naive_percentile(to_reference, 95), naive_percentile(to_prediction, 95)),
        "assd_mm": sum(pooled) / len(pooled),
        "nsd": sum(distance <= tolerance for distance in pooled) / len(pooled),
        "missed": False,
        "spurious": False,
    }


def random_pair(seed, shape, blobs=3):
    """Two label maps of overlapping boxes with labels 1 and 2, some of them at the border, and a few single voxels."""
    generator = np.random.default_rng(seed)
    maps = []
    for _ in range(2):
        array = np.zeros(shape, dtype=np.uint8)
        for blob in range(blobs):
            low = [int(generator.integers(0, size - 1)) for size in shape]
            high = [int(generator.integers(start + 1, size + 1)) for start, size in zip(low, shape, strict=True)]
            array[tuple(map(slice, low, high))] = 1 + blob % 2
        array[generator.random(shape) < 0.03] = 1
        array[generator.random(shape) < 0.03] = 2
        maps.append(array)
    return maps


CASES = [
    (seed, shape, spacing)
    for seed in range(6)
    for shape, spacing in (
        ((9, 11), (1.0, 1.0)),
        ((12, 7), (0.7, 2.3)),
        ((5, 8, 7), (1.0, 1.0, 1.0)),
        ((4, 9, 8), (3.0, 0.8, 0.6)),
    )
]


@pytest.mark.parametrize(("seed", "shape", "spacing"), CASES)
def test_metrics_equal_those_of_all_pairs_of_surface_voxels(seed, shape, spacing):
    prediction, reference = random_pair(seed, shape)
    found = segmentation_metrics(prediction, reference, spacing, [1, 2, (1, 2)], nsd_tolerance_mm=1.3)
    for label, values in ((1, [1]), (2, [2]), ((1, 2), [1, 2])):
        masks = np.isin(prediction, values), np.isin(reference, values)
        assert all(mask.any() for mask in masks)
        assert found[label] == pytest.approx(naive_metrics(*masks, spacing, 1.3), rel=1e-12)


@pytest.mark.parametrize(("seed", "shape", "spacing"), CASES)
def test_voxel_metrics_are_the_pooled_percentile_and_the_directed_mean(seed, shape, spacing):
    prediction, reference = random_pair(seed, shape)
    found = voxel_metrics(prediction, reference, [1, 2])
    for label in (1, 2):
        to_reference, to_prediction = naive_distances(prediction == label, reference == label, (1.0,) * len(shape))
        expected = {
            "hd95_vox_pooled": naive_percentile([*to_reference, *to_prediction], 95),
            "asd_vox": sum(to_reference) / len(to_reference),
        }
        assert found[label] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("shape", [(6, 9), (1, 9), (4, 5, 6), (1, 5, 6), (3, 3, 3)])
@pytest.mark.parametrize("density", [0.05, 0.5, 0.9, 1.0])
def test_surface_is_the_mask_minus_its_erosion_with_outside_beyond_the_border(shape, density):
    mask = np.random.default_rng(1).random(shape) < density
    expected = np.zeros(shape, dtype=bool)
    expected[tuple(naive_surface_points(mask).astype(int).T)] = True
    np.testing.assert_array_equal(surface(mask), expected)


def test_values_worked_out_by_hand():
    prediction = np.array([[1, 0, 0, 0, 0, 0, 0, 0], [0] * 8])
    reference = np.array([[1, 1, 1, 1, 0, 0, 0, 0], [0] * 8])
    # every voxel is surface; distances to the reference 0, to the prediction 0 2 4 6 mm
    found = segmentation_metrics(prediction, reference, (5.0, 2.0), [1], nsd_tolerance_mm=2.0)[1]
    assert found == pytest.approx(
        {
            "dice": 2 / 5,
            "jaccard": 1 / 4,
            "hd95_mm": 5.7,
            "assd_mm": 12 / 5,
            "nsd": 3 / 5,
            "missed": False,
            "spurious": False,
        }
    )
    assert voxel_metrics(prediction, reference, [1])[1] == pytest.approx({"hd95_vox_pooled": 2.8, "asd_vox": 0.0})
    assert voxel_metrics(reference, prediction, [1])[1] == pytest.approx({"hd95_vox_pooled": 2.8, "asd_vox": 1.5})


THIN = [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)]


@pytest.mark.parametrize("spacing", [0.001, 5.0, 1000.0])
@pytest.mark.parametrize("thin", THIN)
@pytest.mark.parametrize("seed", range(3))
def test_axes_of_one_voxel_do_not_count_wherever_they_stand(seed, thin, spacing):
    prediction, reference = random_pair(seed, (9, 8) if len(thin) == 1 else (16,))
    in_plane = [1.7, 0.6][: 3 - len(thin)]
    spacings = iter(in_plane)
    volume = [spacing if axis in thin else next(spacings) for axis in range(3)]
    maps = [np.expand_dims(array, thin) for array in (prediction, reference)]
    found = segmentation_metrics(*maps, volume, [1, 2, (1, 2)], nsd_tolerance_mm=1.3)
    voxels = voxel_metrics(*maps, [1, 2, (1, 2)])
    for label, values in ((1, [1]), (2, [2]), ((1, 2), [1, 2])):
        masks = np.isin(prediction, values), np.isin(reference, values)
        expected = naive_metrics(*masks, in_plane, 1.3)
        assert found[label] == pytest.approx(expected, rel=1e-12)
        assert voxels[label]["asd_vox"] == pytest.approx(naive_distances(*masks, (1.0,) * len(in_plane))[0].mean())


@pytest.mark.parametrize("thin", THIN)
def test_the_image_diagonal_leaves_axes_of_one_voxel_out(thin):
    shape = tuple(1 if axis in thin else 4 + axis for axis in range(3))
    empty, full = np.zeros(shape, dtype=int), np.zeros(shape, dtype=int)
    full[0, 0, 0] = 1
    spacing = [999.0 if axis in thin else 0.5 * (axis + 1) for axis in range(3)]
    lengths = [(shape[axis], spacing[axis]) for axis in range(3) if axis not in thin]
    found = segmentation_metrics(empty, full, spacing, [1])[1]
    assert found["hd95_mm"] == found["assd_mm"] == pytest.approx(math.hypot(*(n * mm for n, mm in lengths)))
    assert voxel_metrics(full, empty, [1])[1]["asd_vox"] == pytest.approx(math.hypot(*(n for n, _ in lengths)))


@pytest.mark.parametrize("axes", [2, 3])
def test_an_image_of_one_voxel_has_finite_values(axes):
    full, empty = np.ones((1,) * axes, dtype=int), np.zeros((1,) * axes, dtype=int)
    spacing = (999.0, 2.0, 0.5)[:axes]
    same = segmentation_metrics(full, full, spacing, [1])[1]
    assert [same[key] for key in NUMBERS] == [1, 1, 0, 0, 1]
    missed = segmentation_metrics(empty, full, spacing, [1])[1]
    assert [missed[key] for key in NUMBERS] == [0, 0, min(spacing), min(spacing), 0]
    assert missed["missed"] is True
    assert voxel_metrics(empty, full, [1])[1] == {"hd95_vox_pooled": 1.0, "asd_vox": 1.0}
    assert all(math.isnan(segmentation_metrics(empty, empty, spacing, [1])[1][key]) for key in NUMBERS)


@pytest.mark.parametrize("thickness", [0.0, -1.0, math.inf, math.nan])
def test_the_spacing_of_an_axis_of_one_voxel_may_be_anything(thickness):
    prediction, reference = random_pair(0, (9, 8))
    expected = segmentation_metrics(prediction, reference, (1.0, 2.0), [1, 2])
    assert segmentation_metrics(prediction[:, None], reference[:, None], (1.0, thickness, 2.0), [1, 2]) == expected


def test_a_mask_that_fills_the_image_has_its_surface_at_the_border():
    prediction, reference = np.ones((5, 5), dtype=int), np.zeros((5, 5), dtype=int)
    reference[1:4, 1:4] = 1
    found = segmentation_metrics(prediction, reference, (1.0, 1.0), [1])[1]
    # 16 border voxels: 4 corners at √2, 12 at 1; 8 inner ones, all at 1
    assert found["assd_mm"] == pytest.approx((4 * math.sqrt(2) + 20) / 24)
    assert found["hd95_mm"] == pytest.approx(math.sqrt(2))
    assert found["nsd"] == pytest.approx(20 / 24)


def test_two_single_voxels_are_as_far_apart_as_the_spacing_says():
    prediction, reference = np.zeros((3, 6, 6), dtype=int), np.zeros((3, 6, 6), dtype=int)
    prediction[0, 0, 0] = reference[2, 5, 0] = 1
    found = segmentation_metrics(prediction, reference, (4.0, 1.2, 9.0), [1])[1]
    assert found["hd95_mm"] == found["assd_mm"] == pytest.approx(10.0)
    assert (found["dice"], found["jaccard"], found["nsd"]) == (0, 0, 0)


@pytest.mark.parametrize(("size", "voxels", "tolerance"), [(0.2, 5, 1.0), (0.1, 3, 0.3), (0.7, 3, 2.1)])
def test_a_distance_equal_to_the_tolerance_is_within_it(size, voxels, tolerance):
    prediction, reference = np.zeros((1, 12), dtype=int), np.zeros((1, 12), dtype=int)
    prediction[0, 0] = reference[0, voxels] = 1
    for allowed, nsd in ((tolerance, 1), (tolerance * 0.999, 0)):
        found = segmentation_metrics(prediction, reference, (size, size), [1], nsd_tolerance_mm=allowed)
        assert found[1]["nsd"] == nsd


def test_identical_masks_are_perfect():
    array, _ = random_pair(3, (6, 7, 5))
    for found in segmentation_metrics(array, array, (2.0, 1.0, 1.0), [1, 2], nsd_tolerance_mm=0).values():
        assert [found[key] for key in NUMBERS] == [1, 1, 0, 0, 1]


def test_a_structure_in_neither_mask_has_no_value():
    empty = np.zeros((4, 5, 6), dtype=int)
    found = segmentation_metrics(empty, empty, (1.0, 1.0, 1.0), [1])[1]
    assert all(math.isnan(found[key]) for key in NUMBERS)
    assert (found["missed"], found["spurious"]) == (False, False)
    assert all(math.isnan(value) for value in voxel_metrics(empty, empty, [1])[1].values())
    counts = overlap_counts(empty, empty, [1])[1]
    assert math.isnan(counts["Dice"])
    assert math.isnan(counts["IoU"])
    assert counts["TN"] == empty.size


@pytest.mark.parametrize(("shape", "spacing"), [((4, 6), (1.5, 2.0)), ((2, 3, 4), (3.0, 1.0, 0.5))])
def test_a_structure_in_one_mask_only_has_the_worst_values(shape, spacing):
    empty, full = np.zeros(shape, dtype=int), np.zeros(shape, dtype=int)
    full[0, 1] = 1
    diagonal = math.sqrt(sum((n * s) ** 2 for n, s in zip(shape, spacing, strict=True)))
    for prediction, reference, flag in ((empty, full, "missed"), (full, empty, "spurious")):
        found = segmentation_metrics(prediction, reference, spacing, [1])[1]
        assert [found[key] for key in NUMBERS] == pytest.approx([0, 0, diagonal, diagonal, 0])
        assert {key for key in ("missed", "spurious") if found[key] is True} == {flag}
        assert overlap_counts(prediction, reference, [1])[1]["Dice"] == 0
        voxels = voxel_metrics(prediction, reference, [1])[1]
        assert list(voxels.values()) == pytest.approx([math.sqrt(sum(n * n for n in shape))] * 2)


@pytest.mark.parametrize("seed", range(3))
def test_swapping_the_two_changes_nothing_but_the_flags(seed):
    prediction, reference = random_pair(seed, (5, 7, 6))
    reference[reference == 2] = 0
    ours, theirs = (
        segmentation_metrics(*pair, (2.0, 1.0, 0.5), [1, 2])
        for pair in ((prediction, reference), (reference, prediction))
    )
    for label in (1, 2):
        assert [ours[label][key] for key in NUMBERS] == pytest.approx([theirs[label][key] for key in NUMBERS])
        assert (ours[label]["missed"], ours[label]["spurious"]) == (theirs[label]["spurious"], theirs[label]["missed"])
    assert ours[2]["spurious"] is True


@pytest.mark.parametrize("axes", [(1, 0, 2), (2, 1, 0), (1, 2, 0)])
def test_permuting_the_axes_with_the_spacing_changes_nothing(axes):
    prediction, reference = random_pair(4, (5, 7, 6))
    spacing = (2.0, 1.0, 0.5)
    permuted = segmentation_metrics(
        prediction.transpose(axes), reference.transpose(axes), [spacing[axis] for axis in axes], [1, 2]
    )
    expected = segmentation_metrics(prediction, reference, spacing, [1, 2])
    for label in (1, 2):
        assert permuted[label] == pytest.approx(expected[label])


def test_background_around_the_image_and_mirrored_axes_change_nothing():
    prediction, reference = random_pair(5, (5, 7, 6))
    expected = segmentation_metrics(prediction, reference, (2.0, 1.0, 0.5), [1, 2])
    padded = [np.pad(array, ((2, 0), (1, 3), (0, 4))) for array in (prediction, reference)]
    mirrored = [array[::-1, :, ::-1] for array in (prediction, reference)]
    for changed in (padded, mirrored):
        found = segmentation_metrics(*changed, (2.0, 1.0, 0.5), [1, 2])
        assert all(found[label] == pytest.approx(expected[label]) for label in (1, 2))


def test_distances_scale_with_the_spacing():
    prediction, reference = random_pair(6, (5, 7, 6))
    small, large = (
        segmentation_metrics(prediction, reference, [k * 2.0, k, k], [1], nsd_tolerance_mm=k)[1] for k in (1, 10)
    )
    assert large["hd95_mm"] == pytest.approx(10 * small["hd95_mm"])
    assert large["assd_mm"] == pytest.approx(10 * small["assd_mm"])
    assert large["nsd"] == pytest.approx(small["nsd"])


def test_ignored_voxels_belong_to_no_mask_and_are_not_counted():
    prediction, reference = random_pair(7, (6, 8))
    ignored = np.zeros((6, 8), dtype=bool)
    ignored[2:4, 3:6] = True
    marked = np.where(ignored, 9, reference)
    removed = [np.where(ignored, 0, array) for array in (prediction, reference)]
    spacing = (1.0, 2.0)
    found = segmentation_metrics(prediction, marked, spacing, [1, 2], ignore_label=9)
    expected = segmentation_metrics(*removed, spacing, [1, 2])
    assert found == expected
    assert found != segmentation_metrics(prediction, reference, spacing, [1, 2])
    assert voxel_metrics(prediction, marked, [1], ignore_label=9) == voxel_metrics(*removed, [1])
    counts = overlap_counts(prediction, marked, [1], ignore_label=9)[1]
    assert counts["TP"] + counts["FP"] + counts["FN"] + counts["TN"] == 48 - 6


@pytest.mark.parametrize(
    ("prediction", "reference", "spacing", "labels", "options", "message"),
    [
        (np.zeros((3, 4)), np.zeros((4, 3)), (1, 1), [1], {}, "differ in shape"),
        (np.zeros(5), np.zeros(5), (1,), [1], {}, "1 axes"),
        (np.zeros((1, 2, 2, 2)), np.zeros((1, 2, 2, 2)), (1, 1, 1, 1), [1], {}, "4 axes"),
        (np.full((2, 2), np.nan), np.zeros((2, 2)), (1, 1), [1], {}, "prediction holds NaN"),
        (np.zeros((2, 2)), np.full((2, 2), np.inf), (1, 1), [1], {}, "reference holds NaN"),
        (np.full((2, 2), 0.5), np.zeros((2, 2)), (1, 1), [1], {}, "holds no labels"),
        (np.full((2, 2), 1e30), np.zeros((2, 2)), (1, 1), [1], {}, "holds no labels"),
        (np.full((2, 2), "a"), np.zeros((2, 2)), (1, 1), [1], {}, "holds values of type"),
        (np.zeros((2, 2)), np.zeros((2, 2)), (1, 1, 1), [1], {}, "spacing"),
        (np.zeros((2, 2)), np.zeros((2, 2)), (1, 0), [1], {}, "spacing"),
        (np.zeros((2, 2)), np.zeros((2, 2)), (1, np.nan), [1], {}, "spacing"),
        (np.zeros((2, 2)), np.zeros((2, 2)), None, [1], {}, "spacing"),
        (np.zeros((2, 2)), np.zeros((2, 2)), (1, 1), ["liver"], {}, "not a label"),
        (np.zeros((2, 2)), np.zeros((2, 2)), (1, 1), [()], {}, "not a label"),
        (np.zeros((2, 2)), np.zeros((2, 2)), (1, 1), [1, 9], {"ignore_label": 9}, "ignore label"),
        (np.zeros((2, 2)), np.zeros((2, 2)), (1, 1), [1], {"nsd_tolerance_mm": -1}, "tolerance"),
    ],
)
def test_wrong_input_is_refused(prediction, reference, spacing, labels, options, message):
    with pytest.raises(DataError, match=message):
        segmentation_metrics(prediction, reference, spacing, labels, **options)


@pytest.mark.parametrize(("seed", "spacing"), [(0, (1.0, 1.0, 1.0)), (1, (3.0, 0.8, 0.8))])
def test_metrics_agree_with_monai(seed, spacing):
    monai = pytest.importorskip("monai.metrics")
    torch = pytest.importorskip("torch")
    prediction, reference = (np.pad(array, 1) for array in random_pair(seed, (6, 10, 9)))
    found = segmentation_metrics(prediction, reference, spacing, [1], nsd_tolerance_mm=1.5)[1]
    masks = [torch.from_numpy((array == 1)[None, None].astype(np.float32)) for array in (prediction, reference)]
    hd95 = monai.compute_hausdorff_distance(*masks, include_background=True, percentile=95, spacing=spacing)
    assd = monai.compute_average_surface_distance(*masks, include_background=True, symmetric=True, spacing=spacing)
    nsd = monai.compute_surface_dice(*masks, [1.5], include_background=True, spacing=spacing)
    assert [found["hd95_mm"], found["assd_mm"], found["nsd"]] == pytest.approx(
        [hd95.item(), assd.item(), nsd.item()], rel=1e-5
    )
