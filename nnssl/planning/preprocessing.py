"""nnU-Net's preprocessing: labelled cases as nnU-Net does, unlabelled cases by the same steps without a label."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from nnssl.data.raw import listed
from nnssl.errors import DataError, EnvironmentProblem
from nnssl.host import ConfigurationManager, PlansManager, plans_manager, quiet
from nnssl.host.content import content_of
from nnssl.names import DATASET_JSON, SEMI_KEY
from nnssl.planning.case_files import DATA_ENDINGS, CaseEntry, CaseFiles
from nnssl.planning.manifest import (
    DataFolder,
    preprocessing_settings,
    resolved_configuration,
    unlabelled_folder,
)
from nnssl.planning.references import copy_labels
from nnssl.planning.resources import default_processes
from nnssl.planning.scope import Scope
from nnssl.planning.sharing import IMAGE_ENDING, Image, Relatives, relatives_of
from nnssl.system.fact_store import FactStore
from nnssl.system.files import read_object
from nnssl.system.locks import hold_lock
from nnssl.system.workers import run_parallel

LOCK_WAIT_S = 10.0  # a command that has little to do is waited for
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Task:
    """One case to preprocess; without a label file the case becomes an unlabelled one.

    `shared` has the images that other plans have of the case.
    """

    name: str
    images: tuple[str, ...]
    label: str | None
    source_hash: str
    shared: tuple[Image, ...] = ()


@dataclass(frozen=True)
class _Outcome:
    """What became of one case: an entry for the manifest, or the problem of a case that is left out."""

    entry: CaseEntry | None
    problem: str = ""


@dataclass(frozen=True)
class _FolderJob:
    """What all cases of a folder share."""

    folder: DataFolder
    plans_manager: PlansManager
    configuration: ConfigurationManager
    dataset_json: dict[str, Any]
    description: str
    store: FactStore
    num_processes: int
    optional: Collection[str] = ()  # the scans of imagesUn, which can be left out
    skip: bool = False  # leave them out where they cannot be preprocessed
    clean: bool = False  # preprocess all cases, and share none


@dataclass(frozen=True)
class Preprocessed:
    """What one call of `preprocess` did.

    Attributes:
        count: number of cases that the call preprocessed.
        shared: number of cases that the call took over from other plans.
        skipped: unlabelled case that could not be preprocessed -> its problem.
    """

    count: int = 0
    shared: int = 0
    skipped: Mapping[str, str] = field(default_factory=dict)

    def __add__(self, other: Preprocessed) -> Preprocessed:
        return Preprocessed(self.count + other.count, self.shared + other.shared, {**self.skipped, **other.skipped})


@dataclass(frozen=True)
class Handling:
    """How cases are preprocessed.

    Attributes:
        clean: preprocess every case again.
        skip_unreadable: leave out scans of `imagesUn` that cannot be normalised, instead of raising an error.
    """

    clean: bool = False
    skip_unreadable: bool = False


def preprocess(
    scope: Scope,
    plans: dict[str, Any],
    configuration: str,
    num_processes: int,
    store: FactStore,
    handling: Handling,
) -> Preprocessed:
    """Preprocess the scope's cases for one configuration.

    Labelled cases go to `<data_identifier>`, exactly as nnU-Net's preprocessing writes them. Unlabelled cases, whose
    label files are never opened, go to `<data_identifier>_unlabelled`. A case appears in its folder only when complete,
    so a call after a kill does what is missing. Cases whose files or settings changed are preprocessed again; cases
    that no longer belong to the data set are deleted. Cases that other plans of the data set have with the same
    settings are linked instead of preprocessed (see `nnssl.planning.sharing`).

    Args:
        scope: the cases.
        plans: content of plans.json.
        configuration: name of the configuration.
        num_processes: worker processes.
        store: what earlier calls learned, the states of preprocessed files among it.
        handling: how cases are preprocessed.

    Raises:
        DataError: the intensities of a scan cannot be normalised; the message names file, channel and value.
        EnvironmentProblem: the disk is full or not writable, a worker died twice on one case, or another command
            preprocesses the same folder.
    """
    from nnssl.host.preprocessing import KeepingConfiguration

    dataset_json = read_object(scope.preprocessed / DATASET_JSON)
    settings = preprocessing_settings(plans, configuration, dataset_json)
    manager = plans_manager(plans)
    chosen = KeepingConfiguration(manager.get_configuration(configuration).configuration)
    _import_by_name(manager, chosen)
    labelled = scope.preprocessed / str(chosen.data_identifier)
    done = Preprocessed()
    for path, cases, kept, with_labels in (
        (labelled, scope.with_labels, scope.kept_with_labels, True),
        (unlabelled_folder(labelled), scope.unlabelled, scope.kept_unlabelled, False),
    ):
        job = _FolderJob(
            DataFolder(path, settings),
            manager,
            chosen,
            dataset_json,
            f"{configuration}: {len(cases)} {'labelled' if with_labels else 'unlabelled'} cases",
            store,
            num_processes,
            optional=frozenset(scope.raw.unlabelled),
            skip=handling.skip_unreadable,
            clean=handling.clean,
        )
        done += _update_folder(job, {case: _task(scope, case, with_labels) for case in cases}, kept)
    return done


def preprocess_all(
    scope: Scope,
    plans: dict[str, Any],
    processes: Mapping[str, int | None],
    store: FactStore,
    handling: Handling,
) -> tuple[dict[str, Preprocessed], dict[str, list[str]]]:
    """Copy the labels for validation, and preprocess the scope's cases for all configurations.

    Args:
        scope: the cases.
        plans: content of plans.json.
        processes: configuration -> worker processes, None for the default; an empty mapping does nothing.
        store: what earlier calls learned about the label files, and about preprocessed files.
        handling: how cases are preprocessed.

    Returns:
        configuration -> what this call did, and unlabelled case that is left out -> problem.
    """
    done: dict[str, Preprocessed] = {}
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
        try:
            done[name] = preprocess(scope, plans, name, workers, store, handling)
        finally:
            store.save()
        skipped |= {case: [problem] for case, problem in done[name].skipped.items()}
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


def _task(scope: Scope, name: str, with_label: bool) -> _Task:
    raw = scope.raw.labelled[name] if name in scope.raw.labelled else scope.raw.unlabelled[name]
    label = str(raw.label) if with_label else None
    return _Task(name, tuple(map(str, raw.images)), label, scope.facts[name].source_hash)


def _usable(job: _FolderJob, wanted: Mapping[str, _Task], kept: Collection[str]) -> dict[str, CaseEntry]:
    """Return the finished, unchanged cases whose source files are unchanged, or that belong to other folds."""
    if job.clean:
        return {}
    known = {
        case: entry
        for case, entry in job.folder.finished().items()
        if (wanted[case].source_hash == entry.source if case in wanted else case in kept)
    }
    held = CaseFiles(job.folder.path, job.store).holding(known, job.num_processes)
    if changed := [case for case in known if case not in held]:
        text = "warning: %s: %d case(s) were changed since they were preprocessed, and do not count: %s"
        log.warning(text, job.folder.path, len(changed), listed(changed))
    return held


def _update_folder(job: _FolderJob, wanted: Mapping[str, _Task], kept: Collection[str]) -> Preprocessed:
    """Bring one folder up to date, alone; `kept` are cases that other folds with the same plans need."""
    folder = job.folder
    what, run = "another command preprocesses the same cases", "wait for its end, then run the same command again"
    try:
        with hold_lock(folder.lock, what, where=folder.path, run=run, wait_s=LOCK_WAIT_S):
            return _update(job, wanted, _usable(job, wanted, kept))
    except OSError as error:
        raise EnvironmentProblem("a folder could not be written", where=folder.path, why=str(error)) from error


def _update(job: _FolderJob, wanted: Mapping[str, _Task], usable: dict[str, CaseEntry]) -> Preprocessed:
    """Bring one folder up to date: keep usable cases, link those of other plans, preprocess the others."""
    folder = job.folder
    if not wanted and not usable and not folder.manifest.exists():
        return Preprocessed()
    folder.keep_only(usable)
    todo = {name: case for name, case in wanted.items() if name not in usable}
    relatives = relatives_of(folder, job.store) if todo and not job.clean else Relatives()
    sources = {name: case.source_hash for name, case in todo.items()}
    linked = relatives.link(sources, folder.path, job.num_processes)
    usable |= linked
    if linked:
        log.info("%s, %d shared with other plans", job.description, len(linked))
        folder.keep_only(usable)
    todo = {
        name: dataclasses.replace(case, shared=relatives.images(name))
        for name, case in todo.items()
        if name not in linked
    }
    outcomes = _preprocess_cases(job, todo) if todo else {}
    made = {name: outcome.entry for name, outcome in outcomes.items() if outcome.entry is not None}
    if todo:
        folder.keep_only(usable | made)
    skipped = {name: outcome.problem for name, outcome in outcomes.items() if outcome.problem}
    return Preprocessed(len(made), len(linked), skipped)


def _preprocess_cases(job: _FolderJob, todo: Mapping[str, _Task]) -> dict[str, _Outcome]:
    """Preprocess cases in worker processes."""
    folder = job.folder
    files = CaseFiles(folder.path, job.store)
    folder.partial.mkdir()
    log.info("%s, %d to do, %d processes", job.description, len(todo), job.num_processes)

    def note(name: str, outcome: _Outcome) -> None:
        if outcome.entry is not None and outcome.entry.content is not None:
            files.note(name, outcome.entry.content, files.states(name))

    work = dataclasses.replace(job, store=FactStore(None))  # the facts stay in this process
    try:
        return run_parallel(partial(_preprocess_case, job=work), todo, job.num_processes, job.description, note)
    except BaseException:
        for unfinished in folder.partial.iterdir():  # a failed worker ends the others in the middle of a case
            shutil.rmtree(unfinished, ignore_errors=True)
        raise


def _import_by_name(manager: PlansManager, configuration: ConfigurationManager) -> None:
    """Look up what nnU-Net knows by name before workers are forked, so that not every worker has to import it."""
    _ = configuration.preprocessor_class, manager.image_reader_writer_class
    _ = configuration.resampling_fn_data, configuration.resampling_fn_seg


def _preprocess_case(case: _Task, job: _FolderJob) -> _Outcome:
    """Write the files of one case into a folder of its own, then move them to their place, the image last.

    A case that is left out has no files.
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
        entry = CaseEntry(case.source_hash, preprocessor.content)
        image = place / (case.name + IMAGE_ENDING)
        same = [each for each in case.shared if each.content == entry.image and image.is_file()]
        _ = any(each.replace(image) for each in same)  # the first that is still there
        last = {case.name + ending for ending in DATA_ENDINGS}
        for file in sorted(place.iterdir(), key=lambda path: path.name in last):
            file.replace(job.folder.path / file.name)
    except DataError as error:
        if case.name not in job.optional:
            raise
        if job.skip:
            return _Outcome(None, f"{case.name} (unlabelled): {error.where}: {error.what}: {error.why}")
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
    job.folder.note(case.name, entry)
    return _Outcome(entry)


def _preprocessor_for_folders(base: Any) -> Any:  # noqa: ANN401 - one of nnU-Net's preprocessor classes
    """Return a subclass of `base` for cases with and without a label.

    The attribute `computing` is true before the case is written, so that an error can be told from a full disk.
    `content` is what the case holds. A case without a label gets empty class locations: nnU-Net's loader asks every
    case for them, and draws patches anywhere where they are empty.
    """

    class FolderPreprocessor(base):
        computing = False
        content = None

        def run_case(self, image_files: list[str], seg_file: str | None, *managers: object) -> Any:  # noqa: ANN401
            self.computing = True
            data, seg, properties = super().run_case(image_files, seg_file, *managers)
            if seg_file is None:
                properties["class_locations"] = {}
            self.content = content_of(data, seg, properties)
            self.computing = False
            return data, seg, properties

    return FolderPreprocessor
