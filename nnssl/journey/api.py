"""`nnssl.run`: from a user's own scans to two models, their masks, and whether the unlabelled scans helped."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnssl.errors import UsageError, unknown_name
from nnssl.journey.commands import StepFailed, export_line, folders_of, run_command
from nnssl.journey.match import SCRIPT, Collected, collect, find_files
from nnssl.journey.measure import measure
from nnssl.journey.propose import Scans, proposal_lines, propose, time_line
from nnssl.journey.state import Measured, Proposal, Request, State, check_same, only_process
from nnssl.journey.steps import COMPARISON, REPORT, Road, Step
from nnssl.names import RAW_VARIABLE, SUPERVISED_TRAINER
from nnssl.registry import DEFAULT_METHOD, find_method
from nnssl.system.files import check_writable, write_text
from nnssl.training.settings import RunSettings

BUDGETS = ("AUTO", "laptop", "workstation")
CONFIGURATIONS = ("2d", "3d_fullres")
UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
PICTURES = (".png", ".bmp", ".jpg", ".jpeg")
LOGS = "logs"
log = logging.getLogger("nnssl.run")

Files = str | Path | Sequence[str | Path]


@dataclass(frozen=True)
class Journey:
    """What a study ended with.

    Attributes:
        folder: of the study.
        dataset: folder name of the data set.
        commands: the commands of the study, as they can be typed.
        masks: trainer -> folder with its masks.
        models: trainer -> folder of its model.
        answer: one sentence: did the unlabelled scans help?
        report: the page that `nnssl_report` wrote; None where the user did not agree to the proposal.
        verdict: `helped`, `no evidence` or `hurt`; empty where the user did not agree to the proposal.
        comparison: the result of `nnssl_compare`; empty likewise.
        notes: what was found and left out.
    """

    folder: Path
    dataset: str
    commands: tuple[str, ...]
    masks: dict[str, Path]
    models: dict[str, Path]
    answer: str
    report: Path | None
    verdict: str
    comparison: dict[str, Any]
    notes: tuple[str, ...]


def run(  # noqa: PLR0913 - the command's options, each with a default
    images: Files,
    labels: Files,
    unlabelled: Files,
    output_folder: str | Path,
    *,
    test: Files = (),
    test_labels: Files = (),
    trainer: str = DEFAULT_METHOD,
    budget: str = "AUTO",
    time: str | float | None = None,
    num_iterations: int | None = None,
    configuration: str | None = None,
    channel: str | None = None,
    label_names: Sequence[str] = (),
    patient: str | None = None,
    agree: Callable[[Sequence[str]], bool] | None = None,
) -> Journey:
    """Train the supervised baseline and one method on a user's own files, and say whether the unlabelled scans helped.

    Every step is an ordinary command in a process of its own, and is logged as it can be typed. Called again after a
    kill at any time, the study goes on.

    Args:
        images: labelled scans: files, globs or folders.
        labels: their masks; names are matched by what scan and mask share.
        unlabelled: scans without masks.
        output_folder: folder of the study; nnU-Net's folders stand there, unless their variables are set.
        test: scans to segment at the end; without them the unlabelled scans are segmented.
        test_labels: masks of the test scans; the methods are then compared on these.
        trainer: the method beside the baseline.
        budget: `laptop` (small plan, CPU), `workstation` (nnU-Net's plan), or `AUTO`: workstation where there is a GPU.
        time: of both trainings together: seconds, or a text with the unit s, min, h or d.
        num_iterations: length of each training instead of a time.
        configuration: `2d` or `3d_fullres`; None takes `2d` on a laptop.
        channel: name of the image channel; `CT` chooses nnU-Net's normalisation of CT.
        label_names: names of the label values 1, 2, …
        patient: regular expression that finds the patient in the name of a case.
        agree: is called once with the proposal in lines and says whether to go on; None goes on.

    Raises:
        UsageError: an option is wrong, a name stands for no file, or the folder holds another study.
        DataError: scans and masks do not fit together.
        EnvironmentProblem: the folder cannot be used, or another process works there.
        StepFailed: a command failed; message and exit code are its own.
        StoppedBySignal: SIGTERM; the same call goes on.
    """
    if trainer == SUPERVISED_TRAINER:
        raise UsageError(
            "the baseline is trained in any case", where=f"-tr {trainer}", run=f"-tr {DEFAULT_METHOD}, or leave it out"
        )
    find_method(trainer)
    seconds = _checked(budget, time, num_iterations, configuration)
    folder = Path(output_folder).absolute()
    check_writable(folder, "the folder of the study", "choose another folder with -o")
    named = {"images": images, "labels": labels, "unlabelled": unlabelled, "test": test, "test_labels": test_labels}
    found = {part: find_files(f"-{part}", _texts(files)) for part, files in named.items()}
    for part in ("images", "labels", "unlabelled"):
        if not found[part]:
            raise UsageError("a study needs labelled scans, their masks and unlabelled scans", where=f"-{part}")
    if found["test_labels"] and not found["test"]:
        raise UsageError("-test_labels are masks of -test scans", where="-test_labels", run="add -test SCANS")
    collected = collect(found)
    request = Request(
        {name: str(path) for name, path in collected.files.items()}, trainer, _budget(budget),
        configuration or ("2d" if found["images"][0].name.lower().endswith(PICTURES) else None),
        num_iterations, seconds, _converter_options(channel, label_names, patient),
    )  # fmt: skip
    return _study(folder, request, collected, agree)


def parse_time(text: str | float) -> float:
    """Return a time in seconds: `90`, `90s`, `20min`, `2h` or `1.5d`.

    Raises:
        UsageError: the text is no time.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]*)?)\s*(s|m|min|h|d|)", str(text).strip())
    if match is None or not float(match[1]):
        raise UsageError(f"'{text}' is no time", where=f"-time {text}", run="-time 2h, -time 30min")
    return float(match[1]) * UNITS[match[2]]


def _study(
    folder: Path, request: Request, collected: Collected, agree: Callable[[Sequence[str]], bool] | None
) -> Journey:
    is_new = not folder.exists()
    state = State.read(folder)
    if state is not None and state.proposal is not None:
        check_same(state.request, request, folder)
    elif state is None and not is_new and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise UsageError("the folder is not empty and holds no study", where=f"-o {folder}", run="choose a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    with only_process(folder):
        folders = folders_of(folder, os.environ)
        if state is None or state.request != request:  # before the user agreed, another request takes its place
            state = State(request, _free_id(Path(folders[RAW_VARIABLE])), _name(folder))
        state.write(folder)
        parts = {name.partition("/")[0] for name in collected.files}
        road = Road(folder, state, folders, "test" in parts, "test_labels" in parts)
        try:
            notes = _look(road, collected)
        except StepFailed:
            if is_new:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        proposal = state.proposal or _agreed(road, collected, agree)
        if proposal is None:
            return Journey(folder, state.dataset, (), {}, {}, "nothing was trained", None, "", {}, tuple(notes))
        return _walk(road, proposal, notes)


def _look(road: Road, collected: Collected) -> list[str]:
    """Link the files, let the converter check them, and return what was found and left out.

    Raises:
        StepFailed: the files cannot be converted.
    """
    notes = list(collected.notes)
    for note in notes:
        log.info("%s", note)
    write_text(road.study / SCRIPT, collected.script())
    collected.link(road.study / "scans")
    if "convert" in road.state.done:
        return notes
    ended = run_command(road.convert_command("--dry_run"), road.folders, road.study / LOGS / "look.log")
    if ended is not None:
        more = [*ended.result["notes"], *ended.result["warnings"]]
        counts = [f"{ended.result[part]} {part}" for part in ("labelled", "unlabelled", "test")]
        more.append(f"{', '.join(counts)} scans can be used")
        log.info("%s", "\n".join(more))
        notes += more
    return notes


def _agreed(road: Road, collected: Collected, agree: Callable[[Sequence[str]], bool] | None) -> Proposal | None:
    """Measure, propose and ask; return what was agreed to, None where the user did not agree."""
    state = road.state
    if state.measured is None:
        log.info("measuring on a few of the scans, about a minute …")
        try:
            state.measured = measure(state.request, collected, road.study / "measure")
        except StepFailed as error:
            log.info("not measured: %s", error.what)
        state.write(road.study)
    parts = Counter(name.partition("/")[0] for name in collected.files)
    scans = Scans(parts["labels"], parts["unlabelled"], parts["test" if road.has_test else "unlabelled"])
    proposal = propose(state.request, state.measured or Measured(), scans)
    lines = proposal_lines(proposal)
    log.info("%s", "\n".join(lines))
    if agree is not None and not agree(lines):
        return None
    state.proposal = proposal
    state.write(road.study)
    return proposal


def _walk(road: Road, proposal: Proposal, notes: Iterable[str]) -> Journey:
    """Take all steps that are not done, and return the result."""
    state, steps = road.state, road.steps(proposal)
    log.info("the same by hand:\n%s\nsh %s", export_line(road.folders), road.study / SCRIPT)
    for number, step in enumerate(steps):
        if step.name in state.done and step.is_complete():
            log.info("done:  %s", step.command)
            continue
        _take(road, step, {later.name for later in steps[number + 1 :]})
    log.info("%s", time_line(proposal, sum(state.seconds.values())))
    file = road.study / COMPARISON / "comparison.json"
    comparison = json.loads(file.read_text(encoding="utf-8"))
    (method,) = comparison["methods"]
    trainers = (SUPERVISED_TRAINER, proposal.trainer)
    models = {name: road.places.results / road.model_name(name, proposal) for name in trainers}
    return Journey(
        road.study,
        state.dataset,
        tuple(str(step.command) for step in steps),
        {name: road.masks(name) for name in trainers},
        models,
        answer_of(method, on_test=road.has_answers),
        road.study / REPORT / "index.html",
        method["verdict"],
        comparison,
        tuple(notes),
    )


def _take(road: Road, step: Step, later: set[str]) -> None:
    """Run a step; later steps are then no longer done, as their input is new.

    Raises:
        StepFailed: the command failed, or left no complete result.
    """
    state = road.state
    words = step.going_on() if step.name in state.begun else ()
    state.done = [name for name in state.done if name not in later | {step.name}]
    state.begun = [name for name in state.begun if name not in later | {step.name}] + [step.name]
    state.write(road.study)
    command = type(step.command)(step.command.name, (*step.command.arguments, *words))
    log.info("%s", command)
    ended = run_command(command, road.folders, road.study / LOGS / f"{step.name}.log")
    state.seconds[step.name] = 0.0 if ended is None else ended.seconds
    if not step.is_complete():
        raise StepFailed("a step ended without an error, but its result is not complete", where=str(command),
                         why=f"log: {road.study / LOGS / f'{step.name}.log'}")  # fmt: skip
    state.done.append(step.name)
    state.write(road.study)


def answer_of(method: dict[str, Any], *, on_test: bool) -> str:
    """Return one sentence on a method of a comparison of Dice.

    Args:
        method: its entry in the result of `nnssl_compare`.
        on_test: whether the cases are the test scans, not the validation scans.
    """
    verdict = method["verdict"]
    said = {"helped": "helped", "hurt": "did harm"}.get(verdict, "neither helped nor harmed in a way that can be shown")
    points, low, high = (method[key] for key in ("mean_difference", "ci_low", "ci_high"))
    interval = "" if low is None or high is None else f", 95 % interval {100 * low:+.1f} to {100 * high:+.1f}"
    cases = "test" if on_test else "validation"
    people = f"{method['patients']} {cases} patient{'' if method['patients'] == 1 else 's'}"
    return f"The unlabelled scans {said}: {100 * points:+.1f} Dice points{interval}, on {people}."


def _checked(budget: str, time: str | float | None, length: int | None, configuration: str | None) -> float | None:
    """Return the time in seconds, after the checks of the options."""
    if budget not in BUDGETS:
        raise unknown_name("budget", budget, BUDGETS, option="-budget")
    if configuration not in (None, *CONFIGURATIONS):
        raise unknown_name("configuration", str(configuration), CONFIGURATIONS, option="-c")
    if time is not None and length is not None:
        raise UsageError("-time and -num_iterations exclude each other", run="leave one of them out")
    if length is not None:
        RunSettings(length)
    return None if time is None else parse_time(time)


def _budget(budget: str) -> str:
    if budget != "AUTO":
        return budget
    import torch

    return "workstation" if torch.cuda.is_available() else "laptop"


def _converter_options(channel: str | None, label_names: Sequence[str], patient: str | None) -> tuple[str, ...]:
    words = ["-channel", channel] if channel else []
    words += ["-label_names", *label_names] if label_names else []
    return (*words, *(["-patient", patient] if patient else []))


def _texts(files: Files) -> list[str]:
    return [str(files)] if isinstance(files, str | Path) else [str(each) for each in files]


def _free_id(raw: Path) -> int:
    """Return the first id that no data set has.

    Raises:
        UsageError: all are taken.
    """
    taken = {path.name[7:10] for path in raw.glob("Dataset*_*")}
    free = next((number for number in range(1, 1000) if f"{number:03d}" not in taken), None)
    if free is None:
        raise UsageError("all ids of data sets are taken", where=raw, run=f"unset {RAW_VARIABLE}")
    return free


def _name(folder: Path) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "", folder.name) or "Own"
