"""The pictures of the documentation, from the phantom of `make demo`: scans, data, views, course of a run, report.

    python -m benchmarks.pictures docs/pictures [-work FOLDER] [-num_iterations 1000]

The commands are those of `make demo`. With `-work` their files stay, and runs that are done there are not repeated.
What the commands print goes to `commands.txt` in the folder of the work. The picture of the report is taken by
Chromium; without it this picture stays as it was.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from nnssl.comparison.scores import read_scores
from nnssl.names import PREPROCESSED_VARIABLE, RAW_VARIABLE, RESULTS_VARIABLE, SUMMARY_JSON
from nnssl.reports.tables import case_scores
from nnssl.sweep.child import python_command

TRAINERS = ("SupervisedTrainer", "FixMatchTrainer")
BROWSERS = ("chromium", "google-chrome", "chromium-browser")
WINDOW = "1280,1500"


class Work:
    """A folder with the demo's data and runs.

    Args:
        folder: of all files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folders = {name: str(folder / name) for name in (RAW_VARIABLE, PREPROCESSED_VARIABLE, RESULTS_VARIABLE)}
        self.environment = {**os.environ, **folders, "nnUNet_compile": "f", "nnUNet_n_proc_DA": "1"}
        self.raw = folder / RAW_VARIABLE / "Dataset901_Phantom"

    def run(self, line: str) -> None:
        """Run an `nnssl_*` command line in the folder and keep what it prints.

        Raises:
            CalledProcessError: the command failed.
        """
        name, *words = shlex.split(line)
        command = python_command(name.removeprefix("nnssl_"), words)
        done = subprocess.run(
            command, env=self.environment, cwd=self.folder, stdout=subprocess.PIPE, text=True, check=True
        )
        with (self.folder / "commands.txt").open("a", encoding="utf-8") as log:
            log.write(f"$ {line}\n{done.stdout}\n")

    def demo(self, num_iterations: int) -> None:
        """Take the road of `make demo` up to the scores."""
        settings = f"-num_iterations {num_iterations} -tag demo --set optimizer=adamw learning_rate=0.001 -device cpu"
        if not self.raw.is_dir():
            self.run("nnssl_phantom -d 901 -labelled 2 -unlabelled 40 -test 20 -shape 16 40 40")
        self.run("nnssl_plan_and_preprocess -d 901 -c 2d -hardware cpu")
        for trainer in TRAINERS:
            if not list(self.folder.glob(f"{RESULTS_VARIABLE}/*/{trainer}__*/fold_0/validation/summary.json")):
                self.run(f"nnssl_train 901 2d 0 -tr {trainer} {settings}")
            words = f"-i {self.raw}/imagesTs -o predictions/{trainer} -tr {trainer} -device cpu --continue_prediction"
            self.run(f"nnssl_predict {words}")
            self.run(f"nnssl_evaluate {self.raw}/labelsTs predictions/{trainer}")

    def typical_case(self) -> str:
        """Return the test case whose gain is the median one."""
        few, method = (
            case_scores(read_scores(self.folder / "predictions" / trainer / SUMMARY_JSON), "Dice")
            for trainer in TRAINERS
        )
        return sorted(few, key=lambda case: (method[case] - few[case], case))[len(few) // 2]

    def draw(self, output: Path) -> None:
        """Draw all pictures."""
        masks = " ".join(f"predictions/{trainer}" for trainer in TRAINERS)
        (self.folder / "reference").unlink(missing_ok=True)
        (self.folder / "reference").symlink_to(self.raw / "labelsTs")
        scan = f"{self.raw}/imagesTs/{self.typical_case()}_0000.nii.gz"
        self.run(f"nnssl_look {scan} reference {masks} -o {output}/look.png")
        self.run(f"nnssl_look -d 901 -o {output}/data.png")
        self.run(f"nnssl_look -d 901 --views -n 3 -o {output}/views.png")
        self.run("nnssl_runs -d 901")
        tr = " ".join(TRAINERS)
        self.run(f"nnssl_sweep -d 901 -c 2d -tr {tr} -seeds 0 1 -num_iterations 1000 -o study --dry_run")
        self.run(f"nnssl_compare {masks}")
        self.run(f"nnssl_report {masks} -o report")
        (fold,) = self.folder.glob(f"{RESULTS_VARIABLE}/*/{TRAINERS[1]}__*/fold_0")
        shutil.copyfile(fold / "progress.png", output / "progress.png")
        browser = next(filter(None, map(shutil.which, BROWSERS)), None)
        if browser is not None:
            page, picture = (self.folder / "report" / "index.html").as_uri(), f"--screenshot={output}/report.png"
            flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--window-size={WINDOW}"]
            words = [*flags, f"--user-data-dir={self.folder / 'browser'}", "--virtual-time-budget=10000"]
            subprocess.run([browser, *words, picture, page], check=True, capture_output=True)

    def scanners(self, output: Path) -> None:
        """Plan scans of several scanners, and keep the sheet of planning."""
        if not list((self.folder / RAW_VARIABLE).glob("Dataset902_*")):
            self.run("nnssl_phantom -d 902 -domains 4 -labelled 6 -unlabelled 6 -test 4 -shape 16 40 40")
        self.run("nnssl_plan_and_preprocess -d 902 -c 2d -hardware cpu -setting umda:A:B")
        (sheet,) = self.folder.glob(f"{PREPROCESSED_VARIABLE}/Dataset902_*/data_check*.png")
        shutil.copyfile(sheet, output / "scanners.png")


def main() -> None:
    """Make the runs and the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("-work", type=Path)
    parser.add_argument("-num_iterations", type=int, default=1000)
    arguments = parser.parse_args()
    output = arguments.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = (arguments.work or Path(scratch)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        work = Work(folder)
        work.demo(arguments.num_iterations)
        work.draw(output)
        work.scanners(output)


if __name__ == "__main__":
    main()
