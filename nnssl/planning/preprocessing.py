"""nnU-Net's preprocessing of labelled cases, and the same without a label for the others."""

from __future__ import annotations

import filecmp
import logging
import shutil
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from nnssl.errors import EnvironmentProblem
from nnssl.planning.manifest import (
    DATA_ENDINGS,
    DataFolder,
    preprocessing_settings,
    resolved_configuration,
    unlabelled_folder,
)
from nnssl.planning.nnunet import quiet
from nnssl.planning.scope import Scope
from nnssl.system.files import read_object, replacing
from nnssl.system.workers import run_parallel

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Case:
    name: str
    images: tuple[str, ...]
    label: str | None
    source_hash: str


@dataclass(frozen=True)
class _Tools:
    """What all cases of a folder share; nnU-Net's managers are known by their use only."""

    folder: DataFolder
    plans_manager: Any
    configuration: Any
    dataset_json: dict[str, Any]


def preprocess(scope: Scope, plans: dict[str, Any], configuration: str, num_processes: int, clean: bool = False) -> int:
    """Preprocess the scope's cases for one configuration; return how many were not done already.

    Labelled cases go to `<data_identifier>`, exactly as nnU-Net's preprocessing writes them; the others, whose label
    files are never opened, to `<data_identifier>_unlabelled`. A case appears there when it is complete, so a run that
    was killed is continued by the next one. Cases of changed files or settings are made anew, others removed.

    Args:
        scope: the cases.
        plans: content of plans.json.
        configuration: its name.
        num_processes: worker processes.
        clean: make every case anew.

    Raises:
        EnvironmentProblem: the disk is full or not writable, or a worker died twice on one case.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    dataset_json = read_object(scope.preprocessed / "dataset.json")
    settings = preprocessing_settings(plans, configuration, dataset_json)
    manager = PlansManager(plans)
    chosen = manager.get_configuration(configuration)
    _import_by_name(manager, chosen)
    labelled = scope.preprocessed / str(chosen.data_identifier)
    done = 0
    for path, cases, kept, with_labels in (
        (labelled, scope.with_labels, scope.kept_with_labels, True),
        (unlabelled_folder(labelled), scope.unlabelled, scope.kept_unlabelled, False),
    ):
        folder = DataFolder(path, settings)
        description = f"{configuration}: {len(cases)} {'labelled' if with_labels else 'unlabelled'} cases"
        tools = _Tools(folder, manager, chosen, dataset_json)
        wanted = {case: _case(scope, case, with_labels) for case in cases}
        done += _fill(tools, wanted, {} if clean else _usable(folder, wanted, kept), num_processes, description)
    return done


def check_preprocessed(
    preprocessed: Path, plans: Mapping[str, Any], configuration: str, labelled: Iterable[str], unlabelled: Iterable[str]
) -> None:
    """Check that the cases of a run are preprocessed as the plans say.

    Args:
        preprocessed: folder of the data set below `nnUNet_preprocessed`.
        plans: content of plans.json.
        configuration: its name.
        labelled: cases needed with their labels.
        unlabelled: cases needed without.

    Raises:
        DataError: a case is missing or was made with other settings; the message holds the command to run.
    """
    made_by = plans.get("nnssl_semi", {}).get("command", f"nnssl_plan_and_preprocess -d {preprocessed.name}")
    command = f"{made_by} -c {configuration}"
    settings = preprocessing_settings(plans, configuration, read_object(preprocessed / "dataset.json", command))
    folder = preprocessed / resolved_configuration(plans, configuration)["data_identifier"]
    DataFolder(folder, settings).check(labelled, command)
    DataFolder(unlabelled_folder(folder), settings).check(unlabelled, command)


def copy_labels(scope: Scope) -> None:
    """Copy the label files of `with_labels` to `gt_segmentations`, where nnU-Net's validation looks for them.

    Raises:
        EnvironmentProblem: a file cannot be written.
    """
    for case in scope.with_labels:
        label = scope.raw.labelled[case].label
        target = scope.preprocessed / "gt_segmentations" / f"{case}{scope.raw.file_ending}"
        if label is not None and not (target.is_file() and filecmp.cmp(label, target, shallow=False)):
            with replacing(target) as temporary:
                shutil.copyfile(label, temporary)


def _case(scope: Scope, name: str, with_label: bool) -> _Case:
    raw = scope.raw.labelled[name] if name in scope.raw.labelled else scope.raw.unlabelled[name]
    label = str(raw.label) if with_label else None
    return _Case(name, tuple(map(str, raw.images)), label, scope.facts[name].source_hash)


def _usable(folder: DataFolder, wanted: Mapping[str, _Case], kept: Collection[str]) -> dict[str, str]:
    """Return the finished cases that are still what they must be, or belong to other folds."""
    return {
        case: source
        for case, source in folder.finished().items()
        if (wanted[case].source_hash == source if case in wanted else case in kept)
    }


def _fill(
    tools: _Tools, wanted: Mapping[str, _Case], usable: dict[str, str], num_processes: int, description: str
) -> int:
    """Bring one folder up to date; return the number of cases that were made."""
    folder = tools.folder
    todo = {name: case for name, case in wanted.items() if name not in usable}
    if not wanted and not usable and not folder.manifest.exists():
        return 0
    try:
        folder.keep_only(usable)
        if todo:
            folder.partial.mkdir()
    except OSError as error:
        raise EnvironmentProblem("a folder could not be written", where=folder.path, why=str(error)) from error
    if todo:
        log.info("%s, %d to do, %d processes", description, len(todo), num_processes)
        try:
            run_parallel(partial(_preprocess_case, tools=tools), todo, num_processes, description)
        except BaseException:
            for unfinished in folder.partial.iterdir():  # of workers that were ended with the one that failed
                shutil.rmtree(unfinished, ignore_errors=True)
            raise
        folder.keep_only(usable | {name: case.source_hash for name, case in todo.items()})
    return len(todo)


def _import_by_name(manager: Any, configuration: Any) -> None:  # noqa: ANN401 - nnU-Net's managers
    """Look up what nnU-Net knows by name, so that forked workers need not import it each."""
    _ = configuration.preprocessor_class, manager.image_reader_writer_class
    _ = configuration.resampling_fn_data, configuration.resampling_fn_seg


def _preprocess_case(case: _Case, tools: _Tools) -> None:
    """Write one case in a folder of its own, then move it to its place, the image last."""
    place = tools.folder.partial / case.name
    shutil.rmtree(place, ignore_errors=True)
    preprocessor = _watched(tools.configuration.preprocessor_class)(verbose=False)
    try:
        place.mkdir()
        with quiet():
            preprocessor.run_case_save(
                str(place / case.name),
                list(case.images),
                case.label,
                tools.plans_manager,
                tools.configuration,
                tools.dataset_json,
            )
        last = {case.name + ending for ending in DATA_ENDINGS}
        for file in sorted(place.iterdir(), key=lambda path: path.name in last):
            file.replace(tools.folder.path / file.name)
    except (OSError, RuntimeError) as error:
        if preprocessor.computing:
            raise
        raise EnvironmentProblem(
            f"the preprocessed case {case.name} could not be written",
            where=tools.folder.path,
            why=str(error),
            run="free space or choose another folder, then run the same command again",
        ) from error
    finally:
        shutil.rmtree(place, ignore_errors=True)
    tools.folder.note(case.name, case.source_hash)


def _watched(base: Any) -> Any:  # noqa: ANN401 - one of nnU-Net's preprocessor classes
    """Return `base` with a mark that tells computing from writing, and with class locations where there is no label.

    nnU-Net's loader asks every case for its class locations; empty ones make it draw patches anywhere.
    """

    class Watched(base):
        computing = False

        def run_case(self, image_files: list[str], seg_file: str | None, *managers: object) -> Any:  # noqa: ANN401
            self.computing = True
            data, seg, properties = super().run_case(image_files, seg_file, *managers)
            if seg_file is None:
                properties["class_locations"] = {}
            self.computing = False
            return data, seg, properties

    return Watched
