from __future__ import annotations

import json
import math
from functools import partial

import numpy as np
import pytest
from nnunetv2.postprocessing.remove_connected_components import determine_postprocessing

from nnssl.errors import DataError
from nnssl.evaluation.evidence import decide_by_anatomy, decide_by_scores, read_mask, read_pair
from nnssl.evaluation.mask_pairs import FilePair
from nnssl.evaluation.structures import Structures
from nnssl.host import reader_named
from tests.conftest import tiny_plans
from tests.evaluation.folders_for_tests import LABELS, write_labels
from tests.evaluation.test_postprocessing import naive_components, naive_keep_largest

TWO = Structures({1: "core", 2: "rim"})
REGIONS = Structures({(1, 2, 3): "whole", (2, 3): "inner", (3,): "core"})
Pairs = dict[str, tuple[np.ndarray, np.ndarray]]


def as_it_is(case):
    return case


def applied(decision) -> list[str]:
    return [step.name for step in decision.steps if step.applied]


def row(text: str) -> np.ndarray:
    """Return an image of one row from digits."""
    return np.array([[int(digit) for digit in text]])


def naive_dice(prediction: np.ndarray, reference: np.ndarray, labels: tuple[int, ...], ignore: int | None) -> float:
    counted = both = 0
    for p, r in zip(prediction.ravel().tolist(), reference.ravel().tolist(), strict=True):
        if r != ignore:
            counted += (p in labels) + (r in labels)
            both += p in labels and r in labels
    return 2 * both / counted if counted else math.nan


def naive_decision(pairs: Pairs, structures: Structures) -> list[str]:
    """Return the names of the steps that nnU-Net's rule takes; a region is taken only if no region loses."""
    parts = {name: label if isinstance(label, tuple) else (label,) for label, name in structures.names.items()}

    def means(predictions: list[np.ndarray]) -> list[float]:
        truth = [reference for _, reference in pairs.values()]
        found = []
        for labels in parts.values():
            values = [
                naive_dice(p, t, labels, structures.ignore_label) for p, t in zip(predictions, truth, strict=True)
            ]
            found.append(float(np.nanmean(values)))
        return found

    now, taken = [prediction for prediction, _ in pairs.values()], []
    union = tuple({value for labels in parts.values() for value in labels})
    for name, labels in {"foreground": union, **parts}.items():
        then = [naive_keep_largest(prediction, labels) for prediction in now]
        before, after = means(now), means(then)
        if np.mean(after) > np.mean(before) + 1e-12 and all(a >= b - 1e-12 for a, b in zip(after, before, strict=True)):
            now, taken = then, [*taken, name]
    return taken


def random_pairs(seed: int, values: int, shape: tuple[int, ...]) -> Pairs:
    """Return boxes as references, and predictions with other boxes missing or too many."""
    generator = np.random.default_rng(seed)

    def box(mask: np.ndarray, value: int, size: int) -> None:
        low = [int(generator.integers(0, max(1, length - size))) for length in shape]
        mask[tuple(slice(start, start + size) for start in low)] = value

    pairs: Pairs = {}
    for case in range(3):
        reference = np.zeros(shape, np.uint8)
        for value in range(1, values + 1):
            for _ in range(int(generator.integers(1, 3))):
                box(reference, value, 3)
        prediction = reference.copy()
        for _ in range(int(generator.integers(0, 3))):
            box(prediction, int(generator.integers(0, values + 1)), 2)
        pairs[f"case_{case}"] = prediction, reference
    return pairs


@pytest.mark.parametrize(
    ("structures", "shape"),
    [(TWO, (14, 15)), (TWO, (6, 8, 9)), (REGIONS, (12, 13)), (Structures({1: "core", 2: "rim"}, 3), (12, 13))],
)
def test_scores_decide_by_nnunets_rule(structures, shape) -> None:
    values = 2 if structures is TWO else 3
    outcomes = set()
    for seed in range(40):
        pairs = random_pairs(seed, values, shape)
        if structures.ignore_label is not None:
            pairs = {case: (np.where(p == 3, 0, p).astype(np.uint8), r) for case, (p, r) in pairs.items()}
        decision = decide_by_scores(pairs, as_it_is, structures)
        assert applied(decision) == naive_decision(pairs, structures), seed
        outcomes.add(tuple(applied(decision)))
        assert (decision.evidence, decision.num_cases) == ("cross-validation", 3)
    assert len(outcomes) >= 2
    assert () in outcomes


def test_the_foreground_comes_first_and_then_what_still_helps() -> None:
    pairs = {"a": (row("0112200100"), row("0112200000")), "b": (row("0112201200"), row("0112200000"))}
    decision = decide_by_scores(pairs, as_it_is, TWO)
    assert applied(decision) == ["foreground"]
    # Dice of core: 4/5 in both cases; of rim: 1 and 4/5.
    assert decision.steps[0].reason == f"mean Dice {(0.8 + 0.9) / 2:.4f} before, 1.0000 after"
    assert decision.steps[1].reason == "mean Dice 1.0000 before, 1.0000 after"


def test_a_structure_that_would_lose_forbids_the_step() -> None:
    decision = decide_by_scores({"a": (row("111222202011"), row("111222202000"))}, as_it_is, TWO)
    means = f"mean Dice {(6 / 8 + 1) / 2:.4f} before, {(1 + 8 / 9) / 2:.4f} after"
    assert decision.steps[0].reason == f"{means}; rim would lose"
    assert applied(decision) == ["core"]


def test_a_structure_of_two_parts_keeps_both() -> None:
    pairs = {"a": (row("1101101220"), row("1101100220"))}
    assert applied(decide_by_scores(pairs, as_it_is, TWO)) == ["core"]  # equal components all stay


def test_a_region_that_helps_itself_and_hurts_another_is_left() -> None:
    structures = Structures({(1, 2): "whole", (2,): "inner"})
    decision = decide_by_scores({"a": (row("0122212000"), row("0122211000"))}, as_it_is, structures)
    assert applied(decision) == []
    means = f"mean Dice {(1 + 6 / 7) / 2:.4f} before, {(10 / 11 + 1) / 2:.4f} after"
    assert decision.steps[2].reason == f"{means}; whole would lose"


def test_empty_masks_and_absent_structures_do_not_decide() -> None:
    nothing = {"a": (row("0000"), row("0000")), "b": (row("0110"), row("0110"))}
    assert applied(decide_by_scores(nothing, as_it_is, TWO)) == []
    assert decide_by_scores(nothing, as_it_is, TWO).steps[2].reason == "mean Dice 1.0000 before, 1.0000 after"
    gone = {"a": (row("1110200"), row("1110000"))}  # the rim vanishes from the only case, and has no score any more
    assert applied(decide_by_scores(gone, as_it_is, TWO)) == ["foreground"]


def test_shapes_that_differ_are_an_error() -> None:
    with pytest.raises(DataError, match="differ in shape"):
        decide_by_scores({"a": (row("01"), row("010"))}, as_it_is, TWO)


@pytest.mark.parametrize(
    ("cases", "expected", "reasons"),
    [
        (["011220", "112200"], ["foreground", "core", "rim"], "one component in 2 of 2 cases that have this structure"),
        (["011220", "110220"], ["core", "rim"], "one component in 1 of 2 cases that have this structure"),
        (["0112210", "000000"], ["foreground", "rim"], "one component in 1 of 1 cases that have this structure"),
        (["011000", "001100"], ["foreground", "core"], "one component in 2 of 2 cases that have this structure"),
        (["000000", "000000"], [], "no case has this structure"),
    ],
)
def test_anatomy_decides_by_the_number_of_components(cases, expected, reasons) -> None:
    decision = decide_by_anatomy({str(k): row(text) for k, text in enumerate(cases)}, as_it_is, TWO)
    assert applied(decision) == expected
    assert decision.steps[0].reason == reasons
    assert (decision.evidence, decision.num_cases) == ("labelled anatomy", 2)
    if "2" not in "".join(cases):
        assert decision.steps[2].reason == "no case has this structure"


@pytest.mark.parametrize("shape", [(10, 11), (5, 6, 7)])
def test_anatomy_is_the_count_of_a_flood_fill(shape) -> None:
    outcomes = set()
    for seed in range(40):
        cases = {case: reference for case, (_, reference) in random_pairs(seed, 2, shape).items()}
        expected = [
            name
            for name, labels in (("foreground", (1, 2)), ("core", (1,)), ("rim", (2,)))
            if {len(naive_components(np.isin(mask, labels))) for mask in cases.values()} - {0} == {1}
        ]
        assert applied(decide_by_anatomy(cases, as_it_is, TWO)) == expected
        outcomes.add(tuple(expected))
    assert len(outcomes) >= 2


def test_anatomy_leaves_single_regions() -> None:
    decision = decide_by_anatomy({"a": row("012321")}, as_it_is, REGIONS)
    assert applied(decision) == ["foreground"]
    assert all("hole" in step.reason for step in decision.steps[1:])


def test_ignored_voxels_hide_components() -> None:
    structures = Structures({1: "core", 2: "rim"}, ignore_label=3)
    assert applied(decide_by_anatomy({"a": row("011220")}, as_it_is, structures)) == ["foreground", "core", "rim"]
    decision = decide_by_anatomy({"a": row("011220"), "b": row("011223")}, as_it_is, structures)
    assert applied(decision) == []
    assert decision.steps[1].reason == "1 of 2 cases have ignored voxels, which may hide components"


def write_pairs(root, pairs: Pairs) -> dict[str, FilePair]:
    files = {}
    for case, (prediction, reference) in pairs.items():
        pair = FilePair(case, root / "truth" / f"{case}.nii.gz", root / "masks" / f"{case}.nii.gz")
        write_labels(pair.reference, reference)
        write_labels(pair.prediction, prediction, origin=(9.0, 0.0, 0.0))
        files[case] = pair
    return files


def test_files_and_worker_processes_decide_the_same(tmp_path) -> None:
    pairs = random_pairs(3, 2, (6, 8, 9))
    files, reader = write_pairs(tmp_path, pairs), reader_named("SimpleITKIO")
    assert decide_by_scores(files, partial(read_pair, reader), TWO, 2) == decide_by_scores(pairs, as_it_is, TWO)
    paths = {case: pair.reference for case, pair in files.items()}
    references = {case: reference for case, (_, reference) in pairs.items()}
    assert decide_by_anatomy(paths, partial(read_mask, reader), TWO, 2) == decide_by_anatomy(references, as_it_is, TWO)
    paths["case_0"].write_bytes(b"")
    with pytest.raises(DataError, match="cannot be read"):
        decide_by_anatomy(paths, partial(read_mask, reader), TWO)


@pytest.mark.slow
def test_the_decision_is_nnunets(tmp_path) -> None:
    pairs = {
        "case_0": (row("0112200100"), row("0112200000")),
        "case_1": (row("0221112000"), row("0221110000")),
        "case_2": (row("0011210000"), row("0011210000")),
    }
    pairs = {case: (prediction[None], reference[None]) for case, (prediction, reference) in pairs.items()}
    write_pairs(tmp_path, pairs)
    description = {"labels": LABELS, "channel_names": {"0": "MRI"}, "numTraining": 3, "file_ending": ".nii.gz"}
    for name, content in (("plans", tiny_plans(3, [16] * 3)), ("dataset", description)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    masks, truth = str(tmp_path / "masks"), str(tmp_path / "truth")
    _, steps = determine_postprocessing(masks, truth, f"{tmp_path}/plans.json", f"{tmp_path}/dataset.json", 1)
    assert [step["labels_or_regions"] for step in steps] == [[1, 2], 2]
    assert decide_by_scores(pairs, as_it_is, TWO).applied == ((1, 2), (2,))
