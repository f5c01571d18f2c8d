"""nnU-Net's preprocessing: labelled cases as nnU-Net does, unlabelled cases by the same steps without a label."""

from __future__ import annotations

import dataclasses
import filecmp
import logging
import shutil
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from nnssl.errors import DataError, EnvironmentProblem
from nnssl.host import ConfigurationManager, PlansManager, companion_file, plans_manager, quiet
from nnssl.names import DATASET_JSON, GT_FOLDER, SEMI_KEY
from nnssl.planning.manifest import (
    DATA_ENDINGS,
    DataFolder,
    preprocessing_settings,
    resolved_configuration,
    unlabelled_folder,
)
from nnssl.planning.resources import default_processes
from nnssl.planning.scope import Scope
from nnssl.system.fact_store import Fact, FactStore, FileState, states_of
from nnssl.system.files import read_object, replacing
from nnssl.system.workers import run_parallel

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Task:
    """One case to preprocess; without a label file the case becomes an unlabelled one."""

    name: str
    images: tuple[str, ...]
    label: str | None
    source_hash: str


@dataclass(frozen=True)
class _FolderJob:
    """What all cases of a folder share."""

    folder: DataFolder
    plans_manager: PlansManager
    configuration: ConfigurationManager
    dataset_json: dict[str, Any]
    description: str
    optional: Collection[str] = ()  # the scans of imagesUn, which can be left out
    skip: bool = False  # leave them out where they cannot be preprocessed


@dataclass(frozen=True)
class Preprocessed:
    """What one call of `preprocess` did.

    Attributes:
        count: number of cases that the call preprocessed.
        skipped: unlabelled case that could not be preprocessed -> its problem.
    """

    count: int
    skipped: Mapping[str, str]


def preprocess(
    scope: Scope,
    plans: dict[str, Any],
    configuration: str,
    num_processes: int,
    clean: bool = False,
    skip_unreadable: bool = False,
) -> Preprocessed:
    """Preprocess the scope's cases for one configuration.

    Labelled cases go to `<data_identifier>`, exactly as nnU-Net's preprocessing writes them. Unlabelled cases, whose
    label files are never opened, go to `<data_identifier>_unlabelled`. A case appears in its folder only when complete,
    so a call after a kill does what is missing. Cases whose files or settings changed are preprocessed again; cases
    that no longer belong to the data set are deleted.

    Args:
        scope: the cases.
        plans: content of plans.json.
        configuration: name of the configuration.
        num_processes: worker processes.
        clean: preprocess every case again.
        skip_unreadable: leave out scans of `imagesUn` that cannot be normalised, instead of raising an error.

    Raises:
        DataError: the intensities of a scan cannot be normalised; the message names file, channel and value.
        EnvironmentProblem: the disk is full or not writable, or a worker died twice on one case.
    """
    from nnssl.host.preprocessing import KeepingConfiguration

    dataset_json = read_object(scope.preprocessed / DATASET_JSON)
    settings = preprocessing_settings(plans, configuration, dataset_json)
    manager = plans_manager(plans)
    chosen = KeepingConfiguration(manager.get_configuration(configuration).configuration)
    _import_by_name(manager, chosen)
    labelled = scope.preprocessed / str(chosen.data_identifier)
    count = 0
    skipped: dict[str, str] = {}
    for path, cases, kept, with_labels in (
        (labelled, scope.with_labels, scope.kept_with_labels, True),
        (unlabelled_folder(labelled), scope.unlabelled, scope.kept_unlabelled, False),
    ):
        folder = DataFolder(path, settings)
        description = f"{configuration}: {len(cases)} {'labelled' if with_labels else 'unlabelled'} cases"
        optional = frozenset(scope.raw.unlabelled)
        job = _FolderJob(folder, manager, chosen, dataset_json, description, optional, skip_unreadable)
        wanted = {case: _task(scope, case, with_labels) for case in cases}
        problems = _update_folder(job, wanted, {} if clean else _usable(folder, wanted, kept), num_processes)
        skipped |= {case: problem for case, problem in problems.items() if problem}
        count += sum(not problem for problem in problems.values())
    return Preprocessed(count, skipped)


def preprocess_all(
    scope: Scope,
    plans: dict[str, Any],
    processes: Mapping[str, int | None],
    store: FactStore,
    clean: bool,
    skip_unreadable: bool,
) -> tuple[dict[str, int], dict[str, list[str]]]:
    """Copy the labels for validation, and preprocess the scope's cases for all configurations.

    Args:
        scope: the cases.
        plans: content of plans.json.
        processes: configuration -> worker processes, None for the default; an empty mapping does nothing.
        store: what earlier calls learned about the label files.
        clean: preprocess every case again.
        skip_unreadable: leave out scans of `imagesUn` that cannot be normalised, instead of raising an error.

    Returns:
        configuration -> number of cases that this call preprocessed, and unlabelled case that is left out -> problem.
    """
    done: dict[str, int] = {}
    skipped: dict[str, list[str]] = {}
    if processes:
        copy_labels(scope, store)
    store.save()
    identifiers: dict[str, str] = {}
    for name, number in processes.items():
        configuration = resolved_configuration(plans, name)
        same = identifiers.setdefault(configuration["data_identifier"], name)
        if same != name:  # configurations can share a folder, for example a cascade uses the data of 3d_fullres
            done[name] = done[same]
            continue
        facts = [scope.facts[case] for case in (*scope.with_labels, *scope.unlabelled)]
        workers = number or default_processes(scope.raw, facts, configuration["spacing"])
        result = preprocess(scope, plans, name, workers, clean, skip_unreadable)
        done[name] = result.count
        skipped |= {case: [problem] for case, problem in result.skipped.items()}
    return done, skipped


def check_preprocessed(
    preprocessed: Path, plans: Mapping[str, Any], configuration: str, labelled: Iterable[str], unlabelled: Iterable[str]
) -> None:
    """Check that the cases of a run are preprocessed as the plans say.

    Args:
        preprocessed: folder of the data set below `nnUNet_preprocessed`.
        plans: content of plans.json.
        configuration: name of the configuration.
        labelled: cases that the run needs with their labels.
        unlabelled: cases that the run needs without a label.

    Raises:
        DataError: a case is missing or was preprocessed with other settings; the message holds the command to run.
    """
    planned_by = plans.get(SEMI_KEY, {}).get("command", f"nnssl_plan_and_preprocess -d {preprocessed.name}")
    command = f"{planned_by} -c {configuration}"
    settings = preprocessing_settings(plans, configuration, read_object(preprocessed / DATASET_JSON, command))
    folder = preprocessed / resolved_configuration(plans, configuration)["data_identifier"]
    DataFolder(folder, settings).check(labelled, command)
    DataFolder(unlabelled_folder(folder), settings).check(unlabelled, command)


def copy_labels(scope: Scope, store: FactStore | None = None) -> None:
    """Copy the label files of `with_labels` to `gt_segmentations`, the folder of nnU-Net's validation references.

    The file with the voxel size of a TIFF label is copied first, so that the label never stands there without it.

    Args:
        scope: the cases.
        store: which copies an earlier call found to be the same; these are not read while both files are unchanged.

    Raises:
        EnvironmentProblem: a file cannot be written.
    """
    store = store or FactStore(None)
    for case in scope.with_labels:
        label = scope.raw.labelled[case].label
        target = scope.preprocessed / GT_FOLDER / f"{case}{scope.raw.file_ending}"
        if label is not None:
            companion, companion_target = companion_file(label), companion_file(target)
            if companion is not None and companion_target is not None:
                _copy_changed(companion, companion_target, store)
            _copy_changed(label, target, store)


def _copy_changed(source: Path, target: Path, store: FactStore) -> None:
    """Copy a file unless the target holds the same content; a target whose source is gone is deleted."""
    key = f"copy {target.name}"
    before = Fact("copy", states_of([source]) or (), None)
    known = store.find(key, before.settings)
    if known is not None and known.holds_for(before.files) and _stored_states(known) == states_of([target]):
        return
    if not source.is_file():
        target.unlink(missing_ok=True)
        return
    if not (target.is_file() and filecmp.cmp(source, target, shallow=False)):
        with replacing(target) as temporary:
            shutil.copyfile(source, temporary)
    if states_of([source]) == before.files:
        store.put(key, dataclasses.replace(before, value=states_of([target])))


def _stored_states(fact: Fact) -> tuple[FileState, ...] | None:
    """Return the states of the copy that a fact holds, None where the fact is damaged."""
    try:
        return tuple(FileState(*state) for state in fact.value)
    except TypeError:
        return None


def _task(scope: Scope, name: str, with_label: bool) -> _Task:
    raw = scope.raw.labelled[name] if name in scope.raw.labelled else scope.raw.unlabelled[name]
    label = str(raw.label) if with_label else None
    return _Task(name, tuple(map(str, raw.images)), label, scope.facts[name].source_hash)


def _usable(folder: DataFolder, wanted: Mapping[str, _Task], kept: Collection[str]) -> dict[str, str]:
    """Return the finished cases whose source files are unchanged, or that belong to other folds, with source hashes."""
    return {
        case: source
        for case, source in folder.finished().items()
        if (wanted[case].source_hash == source if case in wanted else case in kept)
    }


def _update_folder(
    job: _FolderJob, wanted: Mapping[str, _Task], usable: dict[str, str], num_processes: int
) -> dict[str, str]:
    """Bring one folder up to date; return each case that had to be done -> why it is left out, or an empty text."""
    folder = job.folder
    todo = {name: case for name, case in wanted.items() if name not in usable}
    problems: dict[str, str] = {}
    if not wanted and not usable and not folder.manifest.exists():
        return problems
    try:
        folder.keep_only(usable)
        if todo:
            folder.partial.mkdir()
    except OSError as error:
        raise EnvironmentProblem("a folder could not be written", where=folder.path, why=str(error)) from error
    if todo:
        log.info("%s, %d to do, %d processes", job.description, len(todo), num_processes)
        try:
            problems = run_parallel(partial(_preprocess_case, job=job), todo, num_processes, job.description)
        except BaseException:
            for unfinished in folder.partial.iterdir():  # a failed worker ends the others in the middle of a case
                shutil.rmtree(unfinished, ignore_errors=True)
            raise
        folder.keep_only(usable | {name: case.source_hash for name, case in todo.items() if not problems[name]})
    return problems


def _import_by_name(manager: PlansManager, configuration: ConfigurationManager) -> None:
    """Look up what nnU-Net knows by name before workers are forked, so that not every worker has to import it."""
    _ = configuration.preprocessor_class, manager.image_reader_writer_class
    _ = configuration.resampling_fn_data, configuration.resampling_fn_seg


def _preprocess_case(case: _Task, job: _FolderJob) -> str:
    """Write the files of one case into a folder of its own, then move them to their place, the image last.

    The result is empty, or the problem of a case that is left out; such a case has no files.
    """
    from nnssl.host.preprocessing import checked_preprocessor

    place = job.folder.partial / case.name
    shutil.rmtree(place, ignore_errors=True)
    checked = checked_preprocessor(job.configuration.preprocessor_class)
    preprocessor = _preprocessor_for_folders(checked)(verbose=False)
    try:
        place.mkdir()
        with quiet():
            preprocessor.run_case_save(
                str(place / case.name),
                list(case.images),
                case.label,
                job.plans_manager,
                job.configuration,
                job.dataset_json,
            )
        last = {case.name + ending for ending in DATA_ENDINGS}
        for file in sorted(place.iterdir(), key=lambda path: path.name in last):
            file.replace(job.folder.path / file.name)
    except DataError as error:
        if case.name not in job.optional:
            raise
        if job.skip:
            return f"{case.name} (unlabelled): {error.where}: {error.what}: {error.why}"
        run = f"{error.run}; or add --skip_unreadable, which leaves such unlabelled scans out"
        raise DataError(error.what, where=error.where, why=error.why, run=run) from error
    except (OSError, RuntimeError) as error:
        if preprocessor.computing:
            raise
        raise EnvironmentProblem(
            f"the preprocessed case {case.name} could not be written",
            where=job.folder.path,
            why=str(error),
            run="free space or choose another folder, then run the same command again",
        ) from error
    finally:
        shutil.rmtree(place, ignore_errors=True)
    job.folder.note(case.name, case.source_hash)
    return ""


def _preprocessor_for_folders(base: Any) -> Any:  # noqa: ANN401 - one of nnU-Net's preprocessor classes
    """Return a subclass of `base` for cases with and without a label.

    The attribute `computing` is true before the case is written, so that an error can be told from a full disk. A case
    without a label gets empty class locations: nnU-Net's loader asks every case for them, and draws patches anywhere
    where they are empty.
    """

    class FolderPreprocessor(base):
        computing = False

        def run_case(self, image_files: list[str], seg_file: str | None, *managers: object) -> Any:  # noqa: ANN401
            self.computing = True
            data, seg, properties = super().run_case(image_files, seg_file, *managers)
            if seg_file is None:
                properties["class_locations"] = {}
            self.computing = False
            return data, seg, properties

    return FolderPreprocessor
