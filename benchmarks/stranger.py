"""The road of a stranger on real scans: `nnssl_run`, killed once, to a verdict; then the printed commands by hand.

    NNSSL_REAL_DATA=DATA python -m benchmarks.stranger FOLDER [-tr FixMatchTrainer] [-c 2d] [-num_iterations 1000]
                                                       [-kill STEP] [--by_hand]

The scans are those of `DATA/hippocampus` (MSD Task04, nnU-Net's raw layout and `splits.json`), under names of their own
and in US spelling: 8 labelled scans, one of them with a mask of shifted origin; 30 unlabelled scans, one of another
spacing and one cut off; 12 test scans with masks. `-kill STEP` kills the command two seconds after it began that
step, and starts it again. `--by_hand` runs the printed commands in a new folder and compares the masks of both.
The output is one JSON object: verdict, expected and true seconds, seconds of each step, and whether the masks agree.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from nnssl.journey.state import STATE_FILE
from nnssl.names import PREPROCESSED_VARIABLE, RAW_VARIABLE, RESULTS_VARIABLE
from nnssl.sweep.child import python_command

VARIABLES = (RAW_VARIABLE, PREPROCESSED_VARIABLE, RESULTS_VARIABLE)
LABELLED, UNLABELLED, TEST = 8, 30, 12
KILL_AFTER_SECONDS = 2.0


def write_files(source: Path, root: Path) -> None:
    """Copy scans of a data set under a stranger's names: `scans`, `masks`, `more`, `new` and `answers` below a folder.

    Args:
        source: data set in nnU-Net's raw layout, with `splits.json`.
        root: new folder.
    """
    splits = json.loads((source / "splits.json").read_text(encoding="utf-8"))
    order = splits["train_order"]
    parts = (order[:LABELLED], order[LABELLED : LABELLED + UNLABELLED], splits["val"][:TEST])
    for cases, image, label in zip(
        parts,
        ("scans/pat_{}_T1", "more/x-{}", "new/new{}"),
        ("masks/pat_{}_seg", "", "answers/new{}-truth"),
        strict=True,
    ):
        for number, case in enumerate(cases, start=1):
            copies = {f"imagesTr/{case}_0000": image, f"labelsTr/{case}": label}
            for origin, name in copies.items():
                if name:
                    target = root / f"{name.format(number)}.nii.gz"
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(source / f"{origin}.nii.gz", target)
    spoil(root, UNLABELLED)


def spoil(root: Path, last: int) -> None:
    """Shift the origin of the first mask, change the spacing of scan x-1, and cut off the last unlabelled scan.

    Args:
        root: folder with `masks/pat_1_seg.nii.gz` and `more/x-N.nii.gz`.
        last: number of the last unlabelled scan.
    """
    mask = sitk.ReadImage(str(root / "masks" / "pat_1_seg.nii.gz"))
    mask.SetOrigin([value + 0.7 for value in mask.GetOrigin()])
    sitk.WriteImage(mask, str(root / "masks" / "pat_1_seg.nii.gz"))
    scan = sitk.ReadImage(str(root / "more" / "x-1.nii.gz"))
    scan.SetSpacing([1.3 * value for value in scan.GetSpacing()])
    sitk.WriteImage(scan, str(root / "more" / "x-1.nii.gz"))
    cut = root / "more" / f"x-{last}.nii.gz"
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])


def start(root: Path, options: list[str]) -> subprocess.Popen[bytes]:
    """Start `nnssl_run` in a session of its own; the result goes to `answer.json`, messages to `log.txt`."""
    parts = {"images": "scans", "labels": "masks", "unlabeled": "more", "test": "new", "test_labels": "answers"}
    files = [word for part, folder in parts.items() for word in (f"-{part}", str(root / folder))]
    words = [*files, "-o", str(root / "STUDY"), "-budget", "laptop", *options, "--yes", "--json"]
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    with (root / "answer.json").open("wb") as output, (root / "log.txt").open("ab") as log:
        command = python_command("run", words)
        return subprocess.Popen(command, stdout=output, stderr=log, env=environment, start_new_session=True)


def kill_in(root: Path, options: list[str], step: str) -> None:
    """Run until a step has begun, and kill the command soon after.

    Raises:
        SystemExit: the command ended before.
    """
    process, file = start(root, options), root / "STUDY" / STATE_FILE
    while process.poll() is None and not (file.is_file() and step in json.loads(file.read_text())["begun"]):
        time.sleep(0.1)
    time.sleep(KILL_AFTER_SECONDS)
    if process.poll() is not None:
        raise SystemExit(f"the command ended before it could be killed in {step}: see {root / 'log.txt'}")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def by_hand(root: Path, result: dict[str, Any]) -> dict[str, Any]:
    """Run the printed commands in a new folder, and compare the masks.

    Returns:
        Trainer -> `masks` and `different`, their number and the number of those with another voxel.

    Raises:
        CalledProcessError: a command failed.
    """
    study, here = root / "STUDY", root / "by_hand"
    here.mkdir()
    shutil.copyfile(study / "collect.sh", here / "collect.sh")
    subprocess.run(["sh", str(here / "collect.sh")], check=True)
    environment = {**os.environ, **{name: str(here / name) for name in VARIABLES}}
    for line in result["commands"]:
        command, *arguments = shlex.split(line.replace(str(study), str(here)))
        words = python_command(command.removeprefix("nnssl_"), arguments)
        with (here / "log.txt").open("ab") as log:
            subprocess.run(words, env=environment, stdout=log, stderr=log, check=True)
    found = {}
    for trainer, folder in result["masks"].items():
        files = sorted(Path(folder).glob("*.nii.gz"))
        other = [file.name for file in files if not same(file, here / "masks" / trainer / file.name)]
        found[trainer] = {"masks": len(files), "different": len(other)}
    return found


def same(first: Path, second: Path) -> bool:
    """Return whether two masks agree in every voxel."""
    there, here = (sitk.GetArrayFromImage(sitk.ReadImage(str(file))) for file in (first, second))
    return bool(np.array_equal(there, here))


def main() -> None:
    """Take the road and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("-tr", default="FixMatchTrainer")
    parser.add_argument("-c", default="2d")
    parser.add_argument("-num_iterations", default="1000")
    parser.add_argument("-kill", metavar="STEP", help="for instance train_FixMatchTrainer")
    parser.add_argument("--by_hand", action="store_true")
    arguments = parser.parse_args()
    root = arguments.folder.resolve()
    write_files(Path(os.environ["NNSSL_REAL_DATA"]) / "hippocampus", root)
    options = ["-tr", arguments.tr, "-c", arguments.c, "-num_iterations", arguments.num_iterations]
    clock = time.monotonic()
    if arguments.kill:
        kill_in(root, options, arguments.kill)
    code = start(root, options).wait()
    seconds = time.monotonic() - clock
    result = json.loads((root / "answer.json").read_text(encoding="utf-8"))
    if code:
        raise SystemExit(f"{result['error']}: see {root / 'log.txt'}")
    state = json.loads((root / "STUDY" / STATE_FILE).read_text(encoding="utf-8"))
    made = {"options": options, "answer": result["answer"], "seconds": round(seconds, 1),
            "expected": state["proposal"].get("seconds"), "steps": state["seconds"],
            "took": round(sum(state["seconds"].values()), 1), "load": os.getloadavg()}  # fmt: skip
    made["by_hand"] = by_hand(root, result) if arguments.by_hand else None
    print(json.dumps(made))


if __name__ == "__main__":
    main()
