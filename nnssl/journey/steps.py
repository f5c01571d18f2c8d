"""The steps of a study, each an ordinary command, and when a step is done: its files decide."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnssl.journey.commands import POLL_SECONDS, Command
from nnssl.journey.measure import Machine
from nnssl.journey.state import Proposal, State
from nnssl.names import (
    DATASET_JSON,
    DEFAULT_PLANS,
    IMAGES_TS,
    IMAGES_UN,
    LABELS_TS,
    PREPROCESSED_VARIABLE,
    RAW_VARIABLE,
    RESULTS_VARIABLE,
    SUMMARY_JSON,
    SUPERVISED_TRAINER,
)
from nnssl.sweep.child import GRACE_SECONDS
from nnssl.sweep.places import Places, Progress, progress_of
from nnssl.sweep.queue import FLAGS
from nnssl.sweep.study import StudyPlan, StudyRun
from nnssl.training.settings import RunSettings, automatic_tag

COMPARISON = "comparison"
REPORT = "report"
MASKS = "masks"
CONVERTED = "conversion.json"


@dataclass(frozen=True)
class Step:
    """A step of a study.

    Attributes:
        name: key in the state of the study, and name of the log.
        command: the command, as it is typed.
        is_complete: whether the files of its result are there.
        going_on: further words for a step that was begun before.
    """

    name: str
    command: Command
    is_complete: Callable[[], bool]
    going_on: Callable[[], Sequence[str]] = tuple


@dataclass(frozen=True)
class Road:
    """The places of a study.

    Attributes:
        study: its folder.
        state: what it remembers.
        folders: nnU-Net's variables.
        has_test: whether there are test scans.
        has_answers: whether these have masks.
    """

    study: Path
    state: State
    folders: dict[str, str]
    has_test: bool
    has_answers: bool

    @property
    def raw(self) -> Path:
        """The folder of the data set."""
        return Path(self.folders[RAW_VARIABLE]) / self.state.dataset

    @property
    def places(self) -> Places:
        """The folders of the preprocessed data set and of its runs."""
        roots = (Path(self.folders[name]) for name in (PREPROCESSED_VARIABLE, RESULTS_VARIABLE))
        return Places(*(root / self.state.dataset for root in roots))

    def convert_command(self, *further: str) -> Command:
        """Return the conversion; labels take the header of their image, unreadable unlabelled scans are left out."""
        words = ("folder", "-i", str(self.study / "scans"), "-d", str(self.state.dataset_id), "-o", self.state.name)
        return Command(
            "convert", (*words, "--fix_geometry", "--skip_unreadable", *self.state.request.options, *further)
        )

    def steps(self, proposal: Proposal) -> list[Step]:
        """Return all steps in their order."""
        runs = [self._run(trainer, proposal) for trainer in (SUPERVISED_TRAINER, proposal.trainer)]
        predictions = [self._predict(run) for run in runs]
        scores = [self._evaluate(run) for run in runs] if self.has_answers else []
        return [self._convert(), self._plan(proposal), *map(self._train, runs), *predictions, *scores,
                self._compare(runs), self._report(runs)]  # fmt: skip

    def masks(self, trainer: str) -> Path:
        """Return the folder with the masks of a model."""
        return self.study / MASKS / trainer

    def model_name(self, trainer: str, proposal: Proposal) -> str:
        """Return the name of the folder of a model."""
        return self.places.folder(self._run(trainer, proposal)).parent.name

    def _convert(self) -> Step:
        files = (DATASET_JSON, CONVERTED)
        return Step("convert", self.convert_command(), lambda: all((self.raw / name).is_file() for name in files))

    def _plan(self, proposal: Proposal) -> Step:
        job = StudyPlan(
            self.state.dataset, (proposal.configuration,), DEFAULT_PLANS, None, "0", hardware=proposal.hardware
        )
        command = Command("plan_and_preprocess", (*job.arguments, "--skip_unreadable"))
        return Step("plan", command, lambda: self.places.has_plans(job))

    def _run(self, trainer: str, proposal: Proposal) -> StudyRun:
        settings = RunSettings(proposal.num_iterations, config=dict(proposal.settings))
        settings = RunSettings(proposal.num_iterations, config=settings.config, tag=automatic_tag(settings))
        return StudyRun(self.state.dataset, proposal.configuration, "0", trainer, DEFAULT_PLANS, settings)

    def _train(self, run: StudyRun) -> Step:
        folder = self.places.folder(run)
        command = Command("train", (*run.arguments, *self._device))
        return Step(
            f"train_{run.trainer}",
            command,
            lambda: progress_of(folder, run) == "done",
            lambda: FLAGS.get(_settled(folder, run), []),
        )

    @property
    def _device(self) -> list[str]:
        return Machine.of(self.state.request).device_words

    def _predict(self, run: StudyRun) -> Step:
        images, masks = self.raw / (IMAGES_TS if self.has_test else IMAGES_UN), self.masks(run.trainer)
        model = str(self.places.folder(run).parent)
        words = ("-i", str(images), "-o", str(masks), "-m", model, *self._device)

        def is_complete() -> bool:
            ending = _file_ending(self.raw)
            wanted = {path.name.removesuffix(f"_0000{ending}") for path in images.glob(f"*_0000{ending}")}
            return bool(wanted) and all((masks / f"{case}{ending}").is_file() for case in wanted)

        return Step(f"predict_{run.trainer}", Command("predict", words), is_complete, lambda: ["--continue_prediction"])

    def _evaluate(self, run: StudyRun) -> Step:
        masks = self.masks(run.trainer)
        command = Command("evaluate", (str(self.raw / LABELS_TS), str(masks)))
        return Step(f"evaluate_{run.trainer}", command, (masks / SUMMARY_JSON).is_file)

    def _named(self, runs: Sequence[StudyRun]) -> list[str]:
        """Return what is compared: scored masks of the test scans, or else the runs with their validation."""
        found = [self.masks(run.trainer) if self.has_answers else self.places.folder(run) for run in runs]
        return [f"{run.trainer}={place}" for run, place in zip(runs, found, strict=True)]

    def _compare(self, runs: Sequence[StudyRun]) -> Step:
        output = self.study / COMPARISON
        command = Command("compare", (*self._named(runs), "-baseline", SUPERVISED_TRAINER, "-o", str(output)))
        return Step("compare", command, (output / "comparison.json").is_file)

    def _report(self, runs: Sequence[StudyRun]) -> Step:
        output = self.study / REPORT
        command = Command("report", (*self._named(runs), "-baseline", SUPERVISED_TRAINER, "-o", str(output)))
        return Step("report", command, (output / "index.html").is_file)


def _settled(folder: Path, run: StudyRun) -> Progress:
    """Return how far a run is, after the process of a study that was killed has saved the run and ended."""
    deadline = time.monotonic() + GRACE_SECONDS
    while (progress := progress_of(folder, run)) == "locked" and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    return progress


def _file_ending(raw: Path) -> str:
    try:
        return str(json.loads((raw / DATASET_JSON).read_text(encoding="utf-8"))["file_ending"])
    except (OSError, ValueError, KeyError):
        return ".nii.gz"
