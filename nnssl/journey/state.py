"""What a study remembers between two calls: the request, what the user agreed to, and the steps that are done."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnssl.errors import UsageError
from nnssl.system.files import read_object, write_json
from nnssl.system.locks import hold_lock

STATE_FILE = "journey.json"
LOCK = ".journey.lock"


@dataclass(frozen=True)
class Request:
    """What the user asked for; another request needs another folder.

    Attributes:
        files: new name of each file -> the user's file.
        trainer: class name of the method.
        budget: `laptop` or `workstation`.
        configuration: `2d`, `3d_fullres`, or None for what suits the budget.
        num_iterations: length of each training, None for a length by time.
        time_seconds: time that both trainings may take together, None for the default of the budget.
        options: further words for `nnssl_convert folder`.
    """

    files: dict[str, str]
    trainer: str
    budget: str
    configuration: str | None = None
    num_iterations: int | None = None
    time_seconds: float | None = None
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pace:
    """What a short training took.

    Attributes:
        seconds: of an iteration, with the wait for its data, after the data workers have started.
        check_seconds: of the validation on patches that ends an epoch.
        start_seconds: of the rest of the command: its start, that of the data workers, and validation of one case.
        memory_bytes: largest resident memory.
        device_bytes: largest memory on the GPU, 0 on a CPU.
    """

    seconds: float
    check_seconds: float
    start_seconds: float
    memory_bytes: int
    device_bytes: int


@dataclass(frozen=True)
class Cost:
    """What a command took on a few scans.

    Attributes:
        start_seconds: of the command without its scans.
        scan_seconds: of a scan.
    """

    start_seconds: float
    scan_seconds: float

    def of(self, scans: int) -> float:
        """Return the seconds of the command on a number of scans."""
        return self.start_seconds + scans * self.scan_seconds


@dataclass(frozen=True)
class Measured:
    """What was measured before the question; empty where the measurement took too long.

    Attributes:
        paces: trainer -> its short training.
        costs: `convert`, `plan_and_preprocess` and `predict` -> what the command took.
    """

    paces: dict[str, Pace] = field(default_factory=dict)
    costs: dict[str, Cost] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Measured:
        """Return what `dataclasses.asdict` turned into plain values."""
        paces = {name: Pace(**values) for name, values in content["paces"].items()}
        return cls(paces, {name: Cost(**values) for name, values in content["costs"].items()})


@dataclass(frozen=True)
class Proposal:
    """What the study will do.

    Attributes:
        configuration: `2d` or `3d_fullres`.
        hardware: `cpu` for the small fixed plan, None for the planner of nnU-Net.
        trainer: class name of the method.
        num_iterations: length of each training.
        settings: settings that both trainings get.
        seconds: expected time of all steps, None where nothing was measured.
        memory_bytes: largest resident memory that was measured, None where nothing was measured.
        device_bytes: likewise on the GPU.
    """

    configuration: str
    hardware: str | None
    trainer: str
    num_iterations: int
    settings: dict[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    memory_bytes: int | None = None
    device_bytes: int | None = None


@dataclass
class State:
    """The content of `journey.json`.

    Attributes:
        request: what was asked for.
        dataset_id: id of the data set.
        name: its name after the id.
        measured: None until the measurement has ended.
        proposal: None until the user agreed.
        begun: names of steps that were started at least once on the present input.
        done: names of steps that ended well.
        seconds: step -> time of its last command that ended.
    """

    request: Request
    dataset_id: int
    name: str
    measured: Measured | None = None
    proposal: Proposal | None = None
    begun: list[str] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def dataset(self) -> str:
        """Folder name of the data set."""
        return f"Dataset{self.dataset_id:03d}_{self.name}"

    def write(self, folder: Path) -> None:
        """Write the file of the study.

        Raises:
            EnvironmentProblem: the file cannot be written.
        """
        write_json(folder / STATE_FILE, dataclasses.asdict(self))

    @classmethod
    def read(cls, folder: Path) -> State | None:
        """Return the state of the study in a folder, None where there is no study.

        Raises:
            EnvironmentProblem: the file cannot be read.
            UsageError: the file holds something else.
        """
        file = folder / STATE_FILE
        if not file.is_file():
            return None
        content = read_object(file, "choose another folder with -o")
        try:
            request, proposal, measured = (content.pop(name) for name in ("request", "proposal", "measured"))
            request["options"] = tuple(request["options"])
            return cls(
                request=Request(**request),
                measured=Measured.from_dict(measured) if measured else None,
                proposal=Proposal(**proposal) if proposal else None,
                **content,
            )
        except (KeyError, TypeError, AttributeError):
            raise UsageError(
                "the file of the study is of another kind", where=file, run="choose another folder with -o"
            ) from None


def check_same(stored: Request, asked: Request, folder: Path) -> None:
    """Check that a call means the study that stands in the folder.

    Raises:
        UsageError: the study has other files or options.
    """
    values = [dataclasses.asdict(each) for each in (stored, asked)]
    other = [name for name in values[0] if values[0][name] != values[1][name]]
    if other:
        details = [f"{name}: {values[0][name]} before, {values[1][name]} now" for name in other if name != "files"]
        raise UsageError(
            "the folder holds a study with other files or options",
            where=f"-o {folder}",
            why="\n".join(details + ["the files differ"] * ("files" in other)),
            run="the command as it was goes on; for another study choose another folder with -o",
        )


@contextlib.contextmanager
def only_process(folder: Path) -> Iterator[None]:
    """Keep other processes from working in the folder; a file system without locks keeps no process away.

    Raises:
        EnvironmentProblem: another process works there.
    """
    what, run = "another nnssl_run works in this folder", "wait for its end, or stop it"
    with hold_lock(folder / LOCK, what, where=folder, run=run, keep_file=True):
        yield
