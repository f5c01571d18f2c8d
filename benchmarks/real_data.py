"""Write a public data set with a published split into nnUNet_raw, as a user would have it.

    python -m benchmarks.real_data FOLDER ID NAME [PATIENT=SAME_PATIENT ...]

FOLDER is in nnU-Net raw format plus `splits.json`: `train_order` and `val` (cases), or `train_patients` and
`val_patients` where each patient has several scans, named PATIENT_*. The data set gets one fold that trains in that
order and validates on the held-out cases; the validation scans and labels are also linked into imagesTs and labelsTs
of a folder beside it, for `nnssl_predict` and `nnssl_evaluate`. `patient076=patient074` says that two names are one
patient (in the community's ACDC files these two hold the same voxels, which the integrity check refuses otherwise).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from nnssl.system.files import environment_folder, read_json, write_json


def patient(case: str, by_patient: bool) -> str:
    """Return the patient that a case name begins with, or the case itself."""
    return case.split("_", maxsplit=1)[0] if by_patient else case


def main(source: Path, dataset_id: int, name: str, same: dict[str, str]) -> None:
    """Link the scans, write dataset.json with patients and splits_final.json with the published order."""
    splits = json.loads((source / "splits.json").read_text())
    by_patient = "train_patients" in splits
    order = splits["train_patients" if by_patient else "train_order"]
    held_out = set(splits["val_patients" if by_patient else "val"])
    raw = environment_folder("nnUNet_raw")
    target, outside = raw / f"Dataset{dataset_id:03d}_{name}", raw / f"held_out_{dataset_id:03d}_{name}"
    dataset_json = read_json(source / "dataset.json")
    ending = dataset_json["file_ending"]
    cases = sorted(file.name.removesuffix(ending) for file in (source / "labelsTr").glob(f"*{ending}"))
    used = {case: patient(case, by_patient) for case in cases if patient(case, by_patient) in held_out | set(order)}
    for part in ("imagesTr", "labelsTr"):
        (target / part).mkdir(parents=True, exist_ok=True)
        (outside / part).mkdir(parents=True, exist_ok=True)
        for case, person in used.items():
            file = f"{case}_0000{ending}" if part == "imagesTr" else f"{case}{ending}"
            for folder in [target, outside] if person in held_out else [target]:
                (folder / part / file).unlink(missing_ok=True)
                (folder / part / file).symlink_to((source / part / file).resolve())
    train = [case for case, person in used.items() if person not in held_out]
    val = [case for case, person in used.items() if person in held_out]
    people = {case: {"patient": same.get(person, person)} for case, person in used.items()}
    write_json(target / "dataset.json", {**dataset_json, "numTraining": len(used), "cases": people})
    write_json(target / "splits_final.json", [{"train": train, "val": val, "labelled_order": order}])
    print(f"{target}: {len(train)} training and {len(val)} held-out cases; the latter also in {outside}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], dict(text.split("=") for text in sys.argv[4:]))
