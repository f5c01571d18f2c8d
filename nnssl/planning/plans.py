"""From fingerprint to plans.json."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnssl.data.domains import Setting
from nnssl.data.splits import LabelBudget
from nnssl.errors import UsageError, unknown_name
from nnssl.host import find_planner, find_preprocessor, plan_experiment, quiet, temporary_dataset
from nnssl.names import FINGERPRINT_JSON, NAME_SEPARATOR, TAG_SEPARATOR
from nnssl.planning.planner import CpuPlanner, SizedPlanner, Sizing, planner_class
from nnssl.planning.scope import Scope
from nnssl.system.fact_store import FactStore
from nnssl.system.files import read_object, write_json

DEFAULT_PLANNER = "ExperimentPlanner"
DEFAULT_PREPROCESSOR = "DefaultPreprocessor"
log = logging.getLogger(__name__)
SHARED = "shared"
NORMALISATIONS = (SHARED, "nnunet")
STOCK_CONFIGURATIONS = ("2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres")


@dataclass(frozen=True)
class PlanRequest:
    """The options of planning.

    Attributes:
        trainer: trainer that the plans are sized for, None for the heaviest one.
        hardware: `cpu` for the small fixed plan, else None.
        labelled: label budget.
        fold: fold that the label budget applies to.
        planner: name of nnU-Net's planner class.
        gpu_memory_target_gb: memory of the card, None for the planner's own default.
        preprocessor: name of nnU-Net's preprocessor class.
        target_spacing_mm: voxel size of 3d_fullres, in the file's axis order.
        plans_name: plans name instead of the planner's own.
        skip_unreadable: whether unlabelled scans that cannot be read or used are left out.
        setting: setting of domains, None without one.
        normalisation: `shared` or `nnunet`; None is `shared` under a setting of domains, else `nnunet`.
    """

    trainer: str | None = None
    hardware: str | None = None
    labelled: LabelBudget | None = None
    fold: int | str = 0
    planner: str = DEFAULT_PLANNER
    gpu_memory_target_gb: float | None = None
    preprocessor: str = DEFAULT_PREPROCESSOR
    target_spacing_mm: tuple[float, ...] | None = None
    plans_name: str | None = None
    skip_unreadable: bool = False
    setting: Setting | None = None
    normalisation: str | None = None

    def __post_init__(self) -> None:
        gpu, spacing, name = self.gpu_memory_target_gb, self.target_spacing_mm, self.plans_name
        if self.hardware not in (None, "cpu"):
            raise UsageError(
                f"unknown hardware '{self.hardware}'",
                where=f"-hardware {self.hardware}",
                why="known: cpu (-budget cpu is the old spelling of -hardware cpu)",
                run="-hardware cpu",
            )
        if self.hardware and (gpu is not None or self.planner != DEFAULT_PLANNER):
            raise UsageError(
                "-hardware cpu (old spelling: -budget cpu) is a fixed plan",
                where=f"-gpu_memory_target {gpu:g}" if gpu is not None else f"-pl {self.planner}",
                why="this plan depends neither on the memory of a card nor on the planner",
                run="leave one of the two options out",
            )
        if gpu is not None and not 0 < gpu < float("inf"):
            raise UsageError(f"-gpu_memory_target takes a number of GB above 0, got {gpu:g}")
        if spacing is not None and (len(spacing) != 3 or not all(0 < mm < float("inf") for mm in spacing)):
            raise UsageError(
                f"-overwrite_target_spacing takes three numbers above 0 (mm), got {' '.join(map(str, spacing))}"
            )
        if name is not None and (not name or set(name) & {TAG_SEPARATOR, "/", "\\"} or NAME_SEPARATOR in name):
            raise UsageError(
                f"'{name}' cannot be a plans name",
                where=f"-overwrite_plans_name {name}",
                why="@ marks the label budget, __ separates trainer, plans and configuration, / and \\ are for paths",
            )
        if self.normalisation not in (None, *NORMALISATIONS):
            raise unknown_name("normalisation", str(self.normalisation), NORMALISATIONS, option="-normalisation")
        Sizing.for_trainer(self.trainer)

    @property
    def shared_normalisation(self) -> bool:
        """Whether every image is clipped at percentiles of its own and brought to mean 0 and deviation 1."""
        return self.normalisation == SHARED or (self.normalisation is None and self.setting is not None)

    def command(self, dataset: str) -> str:
        """Return the command that makes these plans, without its configurations."""
        options = {
            "-tr": self.trainer,
            "-hardware": self.hardware,
            self.setting.option if self.setting else "-setting": self.setting and self.setting.words,
            "-labelled": None if self.setting and self.setting.protocol else self.labelled,
            "-f": self.fold if self.labelled and self.setting is None else None,
            "-normalisation": self.normalisation,
            "-pl": self.planner if self.planner != DEFAULT_PLANNER else None,
            "-gpu_memory_target": None if self.gpu_memory_target_gb is None else f"{self.gpu_memory_target_gb:g}",
            "-preprocessor_name": self.preprocessor if self.preprocessor != DEFAULT_PREPROCESSOR else None,
            "-overwrite_target_spacing": " ".join(map(str, self.target_spacing_mm)) if self.target_spacing_mm else None,
            "-overwrite_plans_name": self.plans_name,
        }
        given = [f"{option} {value}" for option, value in options.items() if value is not None]
        given += ["--skip_unreadable"] if self.skip_unreadable else []
        return " ".join([f"nnssl_plan_and_preprocess -d {dataset}", *given])


def planner_and_name(request: PlanRequest, tag: str) -> tuple[Any, str]:
    """Return nnU-Net's planner class and the plans name, with the tag of a label budget.

    Raises:
        UsageError: nnU-Net has no such planner or preprocessor.
    """
    base = find_planner(request.planner)
    find_preprocessor(request.preprocessor)
    prefix = request.plans_name or inspect.signature(base.__init__).parameters["plans_name"].default
    return base, prefix + tag


def make_plans(
    scope: Scope, request: PlanRequest, fingerprint: dict[str, Any], store: FactStore | None = None
) -> dict[str, Any]:
    """Return the plans that nnU-Net's planner makes from the fingerprint, in nnU-Net's format plus the key of nnssl.

    The planner works in a temporary folder, so the preprocessed folder stays as it is.

    Args:
        scope: the cases.
        request: what was asked for.
        fingerprint: nnU-Net's fingerprint of the cases.
        store: what earlier calls learned, so that the planner opens no unchanged scan; None opens one.

    Raises:
        UsageError: nnU-Net has no such planner or preprocessor, or the trainer needs more memory.
        DataError: the scans are thin on several axes, or lie as slices on different axes.
    """
    base, name = planner_and_name(request, scope.tag)
    planner = planner_class(
        CpuPlanner if request.hardware == "cpu" else SizedPlanner,
        base,
        sizings=Sizing.for_trainer(request.trainer),
        tag=scope.tag,
        record=_record(scope, request),
        shared_normalisation=request.shared_normalisation,
        store=store,
    )
    with temporary_dataset(scope.raw.name, scope.dataset_json()) as folder, quiet():
        write_json(folder / FINGERPRINT_JSON, fingerprint)
        custom = custom_configurations(scope.preprocessed / f"{name}.json")
        if custom:
            write_json(folder / f"{name}.json", {"configurations": custom})
        plan_experiment(
            scope.raw.name, planner, request.gpu_memory_target_gb, request.preprocessor, request.target_spacing_mm, name
        )
        return read_object(folder / f"{name}.json")


def custom_configurations(path: Path) -> dict[str, Any]:
    """Return the configurations that a user added to existing plans; planning again keeps them, as nnU-Net does."""
    if not path.is_file():
        return {}
    configurations = read_object(path, f"delete {path.name} and plan again").get("configurations", {})
    return {name: value for name, value in configurations.items() if name not in STOCK_CONFIGURATIONS}


def _record(scope: Scope, request: PlanRequest) -> dict[str, Any]:
    from nnssl.version import __version__

    setting = {"setting": str(request.setting)} if request.setting else {}
    return setting | {
        "labelled": str(request.labelled) if request.labelled else None,
        "fold": request.fold if request.labelled else None,
        "labelled_cases": list(scope.labelled),
        "command": request.command(scope.raw.name),
        "version": __version__,
    }


def choose_configurations(configurations: Sequence[str], plans: Mapping[str, Any]) -> list[str]:
    """Return the requested configurations that the plans have.

    Raises:
        UsageError: the plans have none of them.
    """
    chosen = [name for name in dict.fromkeys(configurations) if name in plans["configurations"]]
    if not chosen:
        raise UsageError(
            "the data need none of these configurations",
            where=f"-c {' '.join(configurations)}",
            why=f"the plans have: {', '.join(plans['configurations'])}",
        )
    if plans["original_median_shape_after_transp"][0] == 1:
        log.info(
            "the scans have one slice, along axis %s of the files: planned in 2-D, in the plane of the slice",
            "zyx"[plans["transpose_forward"][0]],
        )
    return chosen
