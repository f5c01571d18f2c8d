"""Plan and preprocess a data set: check, splits, fingerprint, plans, preprocessed cases."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from nnssl.data.domains import Setting, choose, seen_part, setting_fold, without_domain
from nnssl.data.integrity import check_dataset, shift_warnings
from nnssl.data.protocols import protocol_splits
from nnssl.data.raw import RawDataset, read_raw_dataset
from nnssl.data.splits import FoldCases, LabelBudget, fold_cases
from nnssl.errors import UsageError
from nnssl.host import find_extractor
from nnssl.names import DATASET_JSON, DEFAULT_PLANS, FACTS_FILE, PREPROCESSED_VARIABLE, TAG_SEPARATOR
from nnssl.planning.fingerprint import dataset_fingerprint
from nnssl.planning.manifest import resolved_configuration
from nnssl.planning.plans import (
    DEFAULT_PLANNER,
    DEFAULT_PREPROCESSOR,
    STOCK_CONFIGURATIONS,
    PlanRequest,
    choose_configurations,
    custom_configurations,
    make_plans,
    planner_and_name,
)
from nnssl.planning.preprocessing import Handling, Preprocessed, preprocess_all
from nnssl.planning.resources import default_processes, processes_for
from nnssl.planning.scope import (
    Scope,
    Splits,
    make_scope,
    settle_setting,
    settle_splits,
    without_cases,
    write_data_check,
    write_splits,
)
from nnssl.planning.suitability import check_slices, trainable_configurations
from nnssl.system.fact_store import FactStore
from nnssl.system.files import check_writable, environment_folder, replacing, write_json
from nnssl.system.resources import available_cpus

DEFAULT_CONFIGURATIONS = ("2d", "3d_fullres", "3d_lowres")
NO_UNLABELLED = "no unlabelled scans in imagesUn/: only SupervisedTrainer can learn from this data set"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ConfigurationPlan:
    """The numbers of one planned configuration, in the network's order of axes.

    Attributes:
        patch_size: voxels of each axis.
        batch_size: labelled patches of a training step.
        spacing_mm: voxel size of each axis.
        features: feature maps of each stage.
        preprocessed: number of cases that this call preprocessed; 0 where all cases were preprocessed before.
        shared: number of cases that this call took over from other plans of the data set, without a copy.
    """

    patch_size: tuple[int, ...]
    batch_size: int
    spacing_mm: tuple[float, ...]
    features: tuple[int, ...]
    preprocessed: int = 0
    shared: int = 0


@dataclass(frozen=True)
class PlanResult:
    """Result of planning.

    Attributes:
        dataset: folder name of the data set.
        plans_name: plans name, with the tags of setting and label budget.
        plans_path: plans.json.
        configurations: name -> plan of the requested configurations that the data need.
        cases: cases of the planned fold.
        next_commands: the command that trains each configuration.
        warnings: findings that a user should look at.
        skipped: unlabelled case that is left out -> its problems.
    """

    dataset: str
    plans_name: str
    plans_path: Path
    configurations: dict[str, ConfigurationPlan]
    cases: FoldCases
    next_commands: tuple[str, ...]
    warnings: tuple[str, ...]
    skipped: Mapping[str, list[str]] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """Return the plans, and the commands to run next, as lines to print."""
        plans = [
            f"  {name:<12} patch {_by(plan.patch_size)}, batch {plan.batch_size}, spacing {_by(plan.spacing_mm)} mm, "
            f"features {', '.join(map(str, plan.features))}"
            for name, plan in self.configurations.items()
        ]
        return [f"{self.dataset}: {self.plans_path}", *plans, *(f"run:  {command}" for command in self.next_commands)]


def plan(  # noqa: PLR0913 - the command's options, each with a default
    dataset: str | int,
    configurations: Sequence[str] = DEFAULT_CONFIGURATIONS,
    *,
    trainer: str | None = None,
    hardware: str | None = None,
    labelled: str | int | None = None,
    protocol: str | None = None,
    pick: int = 0,
    fold: int | str = 0,
    planner: str = DEFAULT_PLANNER,
    gpu_memory_target_gb: float | None = None,
    preprocessor: str = DEFAULT_PREPROCESSOR,
    target_spacing_mm: Sequence[float] | None = None,
    plans_name: str | None = None,
    fingerprint_extractor: str = "DatasetFingerprintExtractor",
    num_processes: int | Sequence[int] | None = None,
    num_processes_fingerprint: int | None = None,
    run_preprocessing: bool = True,
    clean: bool = False,
    skip_unreadable: bool = False,
    budget: str | None = None,
    setting: str | Setting | None = None,
    normalisation: str | None = None,
    verify: bool = False,
) -> PlanResult:
    """Check the raw data, write splits, fingerprint and plans, and preprocess labelled and unlabelled cases.

    Results of an earlier call are kept where they are still valid. So a call after a kill, or after new scans arrived,
    does what is missing.

    Args:
        dataset: id or name below `nnUNet_raw`.
        configurations: configurations to preprocess; those that the data do not need are skipped.
        trainer: trainer whose memory the plans are sized for, None for the heaviest one.
        hardware: `cpu` for a small fixed plan that trains on two cores.
        labelled: label budget, patients (`7`) or percent (`10%`); other labels stay unread.
        protocol: published protocol, `acdc-7` for example: its lists as fold 0, and its label budget.
        pick: number of another seeded choice of the labelled patients; 0 is the order in `splits_final.json`.
        fold: the fold that the label budget applies to, or `all`.
        planner: nnU-Net's planner class.
        gpu_memory_target_gb: memory of the card, None for the planner's own default.
        preprocessor: nnU-Net's preprocessor class.
        target_spacing_mm: voxel size of 3d_fullres, in the file's axis order.
        plans_name: plans name instead of the planner's own.
        fingerprint_extractor: nnU-Net's extractor class.
        num_processes: processes for preprocessing, one number, or one for each configuration; None derives the number
            from CPUs and free memory.
        num_processes_fingerprint: processes for check and fingerprint; None as above.
        run_preprocessing: False stops after the plans.
        clean: compute fingerprint and preprocessed cases again.
        skip_unreadable: leave out unlabelled scans that cannot be read, used or normalised; the result lists them, and
            no fold has them. A later call tries them again.
        budget: old spelling of `hardware`.
        setting: setting of domains, `umda:SOURCE->TARGET` or `mdg:TARGET`, with plans of its own; see
            `nnssl.data.domains`. The label budget then holds for each source domain.
        normalisation: `shared` clips every image at percentiles of its own and brings it to mean 0 and deviation 1, for
            data sets of several modalities; `nnunet` is nnU-Net's choice by channel name. None takes `shared` under a
            setting and `nnunet` without one.
        verify: read every scan again, also those that are unchanged since an earlier call.

    Raises:
        UsageError: an option is wrong, or options contradict each other.
        DataError: the raw data set or its splits have problems, or the scans are too small, lie as slices on different
            axes, or hold intensities that cannot be normalised.
        EnvironmentProblem: a path or the disk cannot be used, or a worker died twice.
    """
    chosen_setting, label_budget = choose(setting, protocol, labelled, fold, pick)
    request = PlanRequest(
        trainer=trainer,
        hardware=hardware or budget,
        labelled=LabelBudget.parse(label_budget) if label_budget is not None else None,
        fold=fold,
        planner=planner,
        gpu_memory_target_gb=gpu_memory_target_gb,
        preprocessor=preprocessor,
        target_spacing_mm=tuple(target_spacing_mm) if target_spacing_mm is not None else None,
        plans_name=plans_name,
        skip_unreadable=skip_unreadable,
        setting=chosen_setting,
        normalisation=normalisation,
    )
    processes = processes_for(num_processes, configurations)
    if num_processes_fingerprint is not None and num_processes_fingerprint < 1:
        raise UsageError(f"-npfp must be at least 1, got {num_processes_fingerprint}")
    raw = read_raw_dataset(dataset)
    preprocessed = environment_folder(PREPROCESSED_VARIABLE) / raw.name
    repair = f"export {PREPROCESSED_VARIABLE}=/a/folder/that/can/be/written"
    check_writable(preprocessed, "the folder for preprocessed data", repair)
    raw, splits, warnings = _divide(raw, preprocessed, chosen_setting, protocol)
    cases = fold_cases(splits, fold, request.labelled, raw.patients())
    scope = make_scope(raw, preprocessed, splits, fold, request.labelled, chosen_setting)
    _check_names(scope, request, configurations, fingerprint_extractor)
    _announce(scope, cases)
    store = FactStore(preprocessed / FACTS_FILE, trust=not verify)
    checked = check_dataset(
        raw,
        num_processes_fingerprint or available_cpus(),
        scope.with_labels,
        skip_unreadable=skip_unreadable,
        store=store,
    )
    if skipped := checked.skipped:
        warnings += _left_out(skipped)
        scope, splits = _without(scope, splits, request, skipped)
    scope = dataclasses.replace(scope, facts=checked.facts)
    warnings += shift_warnings(scope.compared_facts())
    warnings += [] if scope.unlabelled else [NO_UNLABELLED]
    if len(raw.labelled) == 1:
        warnings.append("one labelled case both trains and validates: the validation score says nothing of other scans")
    _log(warnings)
    readers = num_processes_fingerprint or default_processes(raw, scope.facts.values())
    fingerprint_of = partial(dataset_fingerprint, num_processes=readers, extractor=fingerprint_extractor)
    plans = make_plans(scope, request, fingerprint_of(scope, clean=clean), store)
    chosen = trainable_configurations(plans, choose_configurations(configurations, plans))
    check_slices(plans, chosen, {case: scope.facts[case] for case in (*scope.with_labels, *scope.unlabelled)})
    path = _write_plans(scope, splits, plans, chosen_setting)
    write_data_check(scope, warnings)
    workers = {name: processes[name] for name in chosen if run_preprocessing}
    done, late = preprocess_all(scope, plans, workers, store, Handling(clean, skip_unreadable))
    if late:
        scope, splits, more = _leave_out_late(scope, splits, request, late, fingerprint_of)
        warnings += more
    cases = fold_cases(splits, fold, request.labelled, scope.raw.patients())
    return PlanResult(
        raw.name,
        plans["plans_name"],
        path,
        {name: _summary(plans, name, done.get(name, Preprocessed())) for name in chosen},
        cases,
        tuple(_training_command(raw.name, name, plans["plans_name"], request, not cases.unlabelled) for name in chosen),
        tuple(warnings),
        skipped | late,
    )


def _divide(
    raw: RawDataset, preprocessed: Path, setting: Setting | None, protocol: str | None
) -> tuple[RawDataset, Splits, list[str]]:
    """Return the part of the data set that the plans may see, its folds, and warnings."""
    if setting is None:
        return raw, *settle_splits(raw, preprocessed, protocol_splits(protocol, raw) if protocol else None)
    fold = setting_fold(setting, raw)
    settle_setting(preprocessed, setting, fold)
    warnings = [] if setting.protocol else without_domain(raw)
    if set(fold["train"]) == set(fold["val"]):
        warnings.append("no source patient is left for validation: the labelled training cases validate")
    return seen_part(raw, fold), [fold], warnings


def _log(warnings: Sequence[str]) -> None:
    for warning in warnings:
        log.warning("warning: %s", warning)


def _left_out(skipped: Mapping[str, Sequence[str]]) -> list[str]:
    """Return one warning for each problem of the scans that are left out."""
    return [f"left out by --skip_unreadable: {text}" for texts in skipped.values() for text in texts]


def _without(
    scope: Scope, splits: Splits, request: PlanRequest, skipped: Mapping[str, Sequence[str]]
) -> tuple[Scope, Splits]:
    """Return scope and folds without these scans of imagesUn."""
    kept = {name: case for name, case in scope.raw.unlabelled.items() if name not in skipped}
    raw, splits = dataclasses.replace(scope.raw, unlabelled=kept), without_cases(splits, skipped)
    made = make_scope(raw, scope.preprocessed, splits, request.fold, request.labelled, request.setting)
    return dataclasses.replace(made, facts=scope.facts), splits


def _leave_out_late(
    scope: Scope,
    splits: Splits,
    request: PlanRequest,
    skipped: Mapping[str, Sequence[str]],
    fingerprint_of: Callable[[Scope], object],
) -> tuple[Scope, Splits, list[str]]:
    """Take scans that could not be preprocessed out of the files that planning has written already.

    Args:
        scope: the cases so far.
        splits: the folds so far.
        request: what was asked for.
        skipped: scan of imagesUn -> its problems.
        fingerprint_of: `dataset_fingerprint`, whose second file lists the unlabelled scans.

    Returns:
        Scope and folds without these scans, and the warnings about them, which are in the log, too.
    """
    scope, splits = _without(scope, splits, request, skipped)
    warnings = _left_out(skipped) + ([] if scope.unlabelled else [NO_UNLABELLED])
    _log(warnings)
    fingerprint_of(scope)
    write_splits(scope.preprocessed, splits, request.setting)
    return scope, splits, warnings


def _by(sizes: Sequence[float]) -> str:
    return "x".join(f"{size:.4g}" for size in sizes)


def _training_command(dataset: str, configuration: str, plans: str, request: PlanRequest, supervised: bool) -> str:
    prefix = plans.partition(TAG_SEPARATOR)[0]
    options = {
        "-p": prefix if prefix != DEFAULT_PLANS else None,
        "-tr": "SupervisedTrainer" if supervised else request.trainer,
        request.setting.option if request.setting else "-setting": request.setting and request.setting.words,
        "-labelled": None if request.setting and request.setting.protocol else request.labelled,
    }
    given = [f"{option} {value}" for option, value in options.items() if value is not None]
    return " ".join(["nnssl_train", dataset, configuration, str(request.fold), *given])


def _announce(scope: Scope, cases: FoldCases) -> None:
    raw = scope.raw
    counts = len(raw.labelled), len(raw.unlabelled), len(raw.test)
    what = "" if raw.whole else ", without the scans that the setting leaves unread"
    log.info("%s: %d labelled, %d unlabelled, %d test scans%s", raw.name, *counts, what)
    if scope.tag:
        counts = len(cases.labelled), len(cases.unlabelled), len(cases.validation)
        under = "the label budget" if raw.whole else scope.tag
        log.info("under %s: %d labelled, %d unlabelled, %d validation scans", under, *counts)


def _check_names(scope: Scope, request: PlanRequest, configurations: Sequence[str], extractor: str) -> None:
    """Look up the classes and configurations that the user named, before the slow steps begin."""
    find_extractor(extractor)
    _, name = planner_and_name(request, scope.tag)
    known = [*STOCK_CONFIGURATIONS, *custom_configurations(scope.preprocessed / f"{name}.json")]
    for configuration in configurations:
        if configuration not in known:
            raise UsageError(
                f"unknown configuration '{configuration}'",
                where=f"-c {' '.join(configurations)}",
                why=f"known: {', '.join(known)}",
            )


def _write_plans(scope: Scope, splits: Splits, plans: dict[str, Any], setting: Setting | None) -> Path:
    """Write splits, dataset.json and plans, the plans last; return the path of the plans."""
    write_splits(scope.preprocessed, splits, setting)
    with replacing(scope.preprocessed / DATASET_JSON) as temporary:
        shutil.copyfile(scope.raw.folder / DATASET_JSON, temporary)
    path = scope.preprocessed / f"{plans['plans_name']}.json"
    write_json(path, plans)
    return path


def _summary(plans: Mapping[str, Any], name: str, done: Preprocessed) -> ConfigurationPlan:
    configuration = resolved_configuration(plans, name)
    return ConfigurationPlan(
        tuple(configuration["patch_size"]),
        configuration["batch_size"],
        tuple(configuration["spacing"]),
        tuple(configuration["architecture"]["arch_kwargs"]["features_per_stage"]),
        done.count,
        done.shared,
    )
