"""Re-image a raw data set as four scanners, to try the settings of domains on real anatomy.

    python -m benchmarks.scanners SOURCE_ID ID NAME [--seed 0]

Reads the data set SOURCE_ID below nnUNet_raw and writes `DatasetID_NAME` beside it, with the scanners A to D of
`nnssl.data.scanners` as domains, by the transforms that `nnssl_phantom -domains 4` uses. A seeded shuffle deals the
patients out, so that every domain has as many patients as the others, and no patient is in two domains. The patients of
`val` in the first fold of `splits_final.json` test: their scans go to imagesTs and labelsTs. Unlabelled scans stay
unlabelled scans.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnssl.data.raw import RawCase, read_raw_dataset
from nnssl.data.scanners import SCANNERS, Scanner, reimage
from nnssl.names import IMAGES_TR, IMAGES_TS, IMAGES_UN, LABELS_TR, LABELS_TS, RAW_VARIABLE
from nnssl.system.files import environment_folder, read_json, write_json


def deal_out(groups: Iterable[Iterable[str]], seed: int) -> dict[str, Scanner]:
    """Return patient -> scanner; every group of patients is dealt out evenly, and a patient keeps the first scanner."""
    rng, scanners = np.random.default_rng(seed), {}
    for group in groups:
        people = sorted(set(group) - set(scanners))
        for place, index in enumerate(rng.permutation(len(people))):
            scanners[people[index]] = SCANNERS[place % len(SCANNERS)]
    return scanners


def write_case(case: RawCase, scanner: Scanner, images: Path, labels: Path | None, seed: list[int]) -> None:
    """Write image and label of one case as a scanner would have imaged it, in the same place in space."""
    if len(case.images) != 1:
        sys.exit(f"{case.name} has {len(case.images)} channels; the scanners image one")
    source = sitk.ReadImage(str(case.images[0]))
    voxels = sitk.GetArrayFromImage(source)
    mask = sitk.GetArrayFromImage(sitk.ReadImage(str(case.label))) if labels else np.zeros(voxels.shape, np.uint8)
    spacing = source.GetSpacing()[::-1]
    image, label, new = reimage(voxels.astype(np.float64), mask, spacing, scanner, np.random.default_rng(seed))
    first = [(mm / old - 1) / 2 for mm, old in zip(new[::-1], spacing[::-1], strict=True)]  # centre of the first voxel
    ending = case.images[0].name.removeprefix(f"{case.name}_0000")
    for folder, array, name in ((images, image, f"{case.name}_0000"), (labels, label, case.name)):
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
            written = sitk.GetImageFromArray(array)
            written.SetSpacing(new[::-1])
            written.SetDirection(source.GetDirection())
            written.SetOrigin(source.TransformContinuousIndexToPhysicalPoint(first))
            sitk.WriteImage(written, str(folder / f"{name}{ending}"))


def main(source_id: str, dataset_id: int, name: str, seed: int) -> Path:
    """Write the data set and return its folder."""
    raw = read_raw_dataset(source_id)
    target = environment_folder(RAW_VARIABLE) / f"Dataset{dataset_id:03d}_{name}"
    if target.exists():
        sys.exit(f"{target} exists")
    splits = raw.folder / "splits_final.json"
    held_out = set(read_json(splits)[0]["val"]) if splits.is_file() else set()
    tested = {case: raw.labelled[case] for case in sorted(held_out)}
    learned = {case: found for case, found in raw.labelled.items() if case not in held_out}
    tested |= {case: found for case, found in raw.test.items() if (raw.folder / LABELS_TS).is_dir()}
    parts = ((learned, IMAGES_TR, LABELS_TR), (tested, IMAGES_TS, LABELS_TS), (raw.unlabelled, IMAGES_UN, ""))
    scanners = deal_out(((case.patient for case in cases.values()) for cases, _, _ in parts), seed)
    about = {}
    for cases, images, labels in parts:
        for number, case in enumerate(cases.values()):
            label = case.label or raw.folder / LABELS_TS / f"{case.name}{raw.file_ending}"
            scan = RawCase(case.name, case.images, label if labels else None, case.patient)
            scanner = scanners[case.patient]
            kind = (LABELS_TR, LABELS_TS, "").index(labels)
            folder = target / labels if labels else None
            write_case(scan, scanner, target / images, folder, [seed, kind, number])
            about[case.name] = {"patient": case.patient, "domain": scanner.name}
    write_json(target / "dataset.json", {**raw.dataset_json, "numTraining": len(learned), "cases": about})
    for scanner in SCANNERS:
        counts = (sum(about[case]["domain"] == scanner.name for case in cases) for cases, _, _ in parts)
        print("domain {}: {} labelled, {} test, {} unlabelled scans".format(scanner.name, *counts))
    print(f"{target}\nnext: nnssl_plan_and_preprocess -d {dataset_id} -setting umda:A:B")
    return target


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source_id", help="data set below nnUNet_raw")
    parser.add_argument("id", type=int, help="id of the new data set")
    parser.add_argument("name", help="name of the new data set")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    main(arguments.source_id, arguments.id, arguments.name, arguments.seed)
