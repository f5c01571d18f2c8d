"""What a comparison is made of: the runs or folders that a user names, or all finished runs of a data set."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnssl.comparison.scores import Scores, merge_scores, read_scores
from nnssl.errors import DataError, UsageError, unknown_name
from nnssl.names import (
    FOLD_PREFIX,
    NAME_SEPARATOR,
    PREDICTION_JSON,
    RESULTS_VARIABLE,
    SEMI_KEY,
    SUMMARY_JSON,
    SUPERVISED_TRAINER,
    TAG_SEPARATOR,
    VALIDATION_FOLDER,
)
from nnssl.system.files import environment_folder
from nnssl.training.record import RunRecord
from nnssl.training.run_folder import ModelName
from nnssl.training.runs import Run, runs
from nnssl.training.settings import RunSettings, automatic_tag

ALL_FOLDS = f"{FOLD_PREFIX}all"


@dataclass(frozen=True)
class Source:
    """The scores of one model or folder of results.

    Attributes:
        text: what the user named, or the folder.
        name: trainer and tag of a model, else the folder's name.
        scores: of all its folds together.
        records: fold -> record; empty for folders that are no runs of nnssl.
        trainer: class name of the trainer, empty where no file and no folder's name tells.
    """

    text: str
    name: str
    scores: Scores
    records: Mapping[str, RunRecord]
    trainer: str = ""

    @property
    def record(self) -> RunRecord | None:
        """The record of one of the folds, which share the settings; None without one."""
        return next(iter(self.records.values()), None)

    @property
    def place(self) -> tuple[Path, ...]:
        """The folders, resolved, by which two sources are the same."""
        return tuple(folder.resolve() for folder in self.scores.folders)


@dataclass(frozen=True)
class Compared:
    """One method of a comparison: its runs differ in the seed only.

    Attributes:
        name: name in the results.
        sources: the runs, at least one.
    """

    name: str
    sources: tuple[Source, ...]

    @property
    def runs(self) -> list[Scores]:
        """The scores of each run."""
        return [source.scores for source in self.sources]

    @property
    def record(self) -> RunRecord | None:
        """The record of one of the runs, None without one."""
        return next((source.record for source in self.sources if source.record), None)

    @property
    def trainer(self) -> str:
        """Class name of the trainer; where no file tells, the name without its tag."""
        told = next((source.trainer for source in self.sources if source.trainer), "")
        return self.record.trainer if self.record else told or self.name.partition(TAG_SEPARATOR)[0]


def read_source(text: str | Path) -> Source:
    """Return the scores of a run, of a folder with a `summary.json`, or of a summary file.

    Args:
        text: the folder of a fold; the folder of a model, whose validated folds are taken together; a folder that holds
            `summary.json`; or the summary itself. Each is a path as it stands, or a path below `nnUNet_results`.

    Raises:
        DataError: there is no such place, or it holds no scores.
        EnvironmentProblem: a summary cannot be read.
    """
    place = _existing(Path(text))
    if place.is_file():
        name = place.parent.name if place.name == SUMMARY_JSON else place.stem
        return Source(str(text), name, read_scores(place), {}, _trainer_of(place.parent))
    summaries = _summaries(place)
    if not summaries:
        raise _without_scores(place)
    records = {}
    for summary in summaries:
        fold = summary.parents[1] if summary.parent.name == VALIDATION_FOLDER else summary.parent
        record = RunRecord.read(fold)
        if record is not None:
            records[record.fold] = record
    scores = merge_scores(map(read_scores, summaries))
    return Source(str(text), _name(place.resolve()), scores, records, _trainer_of(place))


def named_methods(texts: Sequence[str | Path], baseline: str | Path | None) -> tuple[Compared, list[Compared]]:
    """Return the baseline and the other methods, in the order given.

    Args:
        texts: see `read_source`; `NAME=PLACE` gives a name, and several places of one name are seeds of one method.
        baseline: one of the texts or names, or a further place. None takes the only run, or folder of predictions, of
            `SupervisedTrainer`.

    Raises:
        UsageError: no baseline, no other method, or a place named twice.
        DataError: a place holds no scores.
    """
    methods = group_places(texts)
    chosen = choose_method(methods, baseline)
    others = [method for method in methods.values() if method is not chosen]
    if not others:
        raise UsageError(
            "there is no method beside the baseline",
            run="nnssl_compare A B -baseline A, or nnssl_compare -d ID",
        )
    return chosen, others


def group_places(texts: Sequence[str | Path], check: Callable[[Path], None] | None = None) -> dict[str, Compared]:
    """Return the methods of some places, each by its text or name; `check` sees each place before its scores are read.

    Raises:
        UsageError: a place is named twice.
        DataError: a place holds no scores.
    """
    grouped: dict[str, list[Source]] = {}
    for text in map(str, texts):
        given, place = _split_name(text)
        if check is not None:
            check(_existing(Path(place)))
        grouped.setdefault(given or text, []).append(read_source(place))
    _check_places([source for sources in grouped.values() for source in sources])
    shown = [key if key not in _texts(sources) else sources[0].name for key, sources in grouped.items()]
    unique = {key: name if shown.count(name) == 1 else key for key, name in zip(grouped, shown, strict=True)}
    return {key: Compared(unique[key], tuple(sources)) for key, sources in grouped.items()}


def finished_methods(
    dataset: str | int, plans: str | None, configuration: str | None, fold: str | int | None
) -> list[Compared]:
    """Return the methods of the finished, validated runs of a data set; arguments as in `methods_of_dataset`.

    Raises:
        UsageError: the runs are of several plans or configurations.
        EnvironmentProblem: `nnUNet_results` is not set.
    """
    listed = runs(dataset, plans=plans, configuration=configuration, fold=fold)
    found = [run for run in listed if run.state == "done" and _validation(run.folder).is_file()]
    kinds = sorted({(run.dataset, run.plans, run.configuration) for run in found})
    if len(kinds) > 1:
        raise UsageError(
            "the runs have several plans or configurations: choose one",
            where=environment_folder(RESULTS_VARIABLE),
            why="\n".join(f"-d {name} -p {plan} -c {conf}" for name, plan, conf in kinds),
            run="nnssl_compare -d {} -p {} -c {}".format(*kinds[0]),
        )
    return _grouped(found)


def methods_of_dataset(
    dataset: str | int,
    plans: str | None = None,
    configuration: str | None = None,
    fold: str | int | None = None,
    baseline: str | None = None,
) -> tuple[Compared, list[Compared]]:
    """Return the baseline and the other methods among the finished, validated runs of a data set.

    Runs of one trainer whose settings differ in the seed only are one method. The folds of a run are taken together.

    Args:
        dataset: folder name or id.
        plans: plans name with the tag of the label budget; needed if there are runs of several.
        configuration: likewise.
        fold: only this fold.
        baseline: name of a method; None for `SupervisedTrainer`.

    Raises:
        UsageError: the runs are of several plans or configurations, or the baseline or other methods are missing.
        EnvironmentProblem: `nnUNet_results` is not set.
    """
    methods = finished_methods(dataset, plans, configuration, fold)
    chosen = choose_method({method.name: method for method in methods}, baseline, listed=True)
    others = [method for method in methods if method is not chosen]
    if not others:
        raise UsageError(
            f"there is no finished and validated run beside {chosen.name}",
            where=environment_folder(RESULTS_VARIABLE),
            run=f"nnssl_runs -d {dataset} lists all runs",
        )
    return chosen, others


def _existing(place: Path) -> Path:
    """Return a place as it stands, or below `nnUNet_results`."""
    if place.exists():
        return place
    results = os.environ.get(RESULTS_VARIABLE)
    if results and (Path(results) / place).exists():
        return Path(results) / place
    raise DataError(
        "there is no such run and no such folder",
        where=place,
        why="it exists neither here nor in nnUNet_results",
        run="nnssl_runs lists all runs",
    )


def _validation(fold: Path) -> Path:
    return fold / VALIDATION_FOLDER / SUMMARY_JSON


def _summaries(place: Path) -> list[Path]:
    """Return the summaries of a folder: its own, that of its validation, or those of its folds."""
    for own in (place / SUMMARY_JSON, _validation(place)):
        if own.is_file():
            return [own]
    folds = [file for fold in sorted(place.glob(f"{FOLD_PREFIX}*")) if (file := _validation(fold)).is_file()]
    numbered = [file for file in folds if file.parents[1].name != ALL_FOLDS]
    return numbered or folds


def _without_scores(place: Path) -> DataError:
    """Return the error for a folder without scores; it says what is missing."""
    record = RunRecord.read(place)
    fold = place
    for fold in sorted(place.glob(f"{FOLD_PREFIX}*")) if record is None else ():
        record = record or RunRecord.read(fold)
    if record is None or not record.sessions:
        return DataError(
            f"the folder holds no {SUMMARY_JSON}",
            where=place,
            why="it is no validated run and no folder of evaluated predictions",
            run=f"nnssl_evaluate LABELS {place}",
        )
    option = "--val" if record.state == "done" else "--c"
    return DataError(
        f"the run is not validated ({record.state} at {record.iteration} of {record.settings.num_iterations})",
        where=fold,
        run=f"{record.sessions[0].command} {option}",
    )


def _name(place: Path) -> str:
    """Return trainer and tag of the model that a folder belongs to, else the folder's name."""
    model = _model_of(place)
    if model is None:
        return place.name
    return f"{model.trainer}{TAG_SEPARATOR}{model.tag}" if model.tag else model.trainer


def _model_of(place: Path) -> ModelName | None:
    """Return the name of the model that a folder belongs to, None where no folder has such a name."""
    names = (ModelName.parse(folder.name) for folder in (place, *place.parents[:2]))
    return next((name for name in names if name is not None), None)


def _trainer_of(folder: Path) -> str:
    """Return the trainer of the model that a folder belongs to or that predicted its masks; empty where nothing tells.

    The record of a prediction is read as far as it goes: stock nnU-Net's names no model.
    """
    model = _model_of(folder.resolve())
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        record = json.loads((folder / PREDICTION_JSON).read_text(encoding="utf-8"))
        model = ModelName.parse(Path(record[SEMI_KEY]["model"]).name) or model
    return model.trainer if model else ""


def _split_name(text: str) -> tuple[str, str]:
    """Return name and place of `NAME=PLACE`; the name is empty where the text is a place."""
    name, separator, place = text.partition("=")
    plain = not separator or NAME_SEPARATOR in name or "/" in name or "\\" in name or Path(text).exists()
    return ("", text) if plain else (name, place)


def _texts(sources: Sequence[Source]) -> set[str]:
    return {source.text for source in sources}


def _check_places(sources: Sequence[Source]) -> None:
    """Check that no folder is named twice: a folder beside itself would be two seeds, or two methods."""
    seen: dict[tuple[Path, ...], Source] = {}
    for source in sources:
        if source.place in seen:
            raise UsageError(
                "the same run is named twice",
                where=source.place[0],
                why=f"{seen[source.place].text}, {source.text}",
                run="name each run or folder once; a comparison needs two: nnssl_compare A B -baseline A",
            )
        seen[source.place] = source


def choose_method(methods: dict[str, Compared], baseline: str | Path | None, *, listed: bool = False) -> Compared:
    """Return the baseline; a place that is none of the methods is read.

    Args:
        methods: what the user gave as the name -> method.
        baseline: as the user gave it, None for the only supervised run.
        listed: the methods are those of a data set, so that the baseline must be one of their names.
    """
    names = [method.name for method in methods.values()]
    if baseline is None:
        supervised = [method for method in methods.values() if method.trainer == SUPERVISED_TRAINER]
        if len(supervised) == 1:
            return supervised[0]
        why = f"{len(supervised)} of these are runs of {SUPERVISED_TRAINER}: {', '.join(names) or 'no finished run'}"
        run = "add -baseline NAME, with one of these names" if names else "nnssl_runs lists all runs"
        if len(names) == 1 and not listed:
            run = "add the place to compare with: nnssl_compare A B -baseline A"
        raise UsageError("choose the baseline" if names else "there is no finished run", why=why, run=run)
    text = str(baseline)
    if text in methods:
        return methods[text]
    named = [method for method in methods.values() if method.name == text]
    if len(named) == 1:
        return named[0]
    if listed:
        raise unknown_name("method", text, names, option="-baseline", otherwise="give one of these names")
    source = read_source(text)
    same = [method for method in methods.values() if source.place in [each.place for each in method.sources]]
    return same[0] if same else Compared(source.name if source.name not in names else text, (source,))


def _source_of_model(model: Path, folds: Sequence[Run]) -> Source:
    numbered = [run.folder for run in folds if run.folder.name != ALL_FOLDS] or [run.folder for run in folds]
    records = {record.fold: record for fold in numbered if (record := RunRecord.read(fold)) is not None}
    scores = merge_scores([read_scores(_validation(fold)) for fold in numbered])
    return Source(str(model), _name(model), scores, records, _trainer_of(model))


def _grouped(found: Sequence[Run]) -> list[Compared]:
    """Return one method for each trainer and settings; a method's name has the settings that tell it from others."""
    models: dict[Path, list[Run]] = {}
    for run in found:
        models.setdefault(run.folder.parent, []).append(run)
    sources = {model: _source_of_model(model, folds) for model, folds in models.items()}
    lengths: dict[str, set[int]] = {}
    for source in sources.values():
        if source.record:
            lengths.setdefault(source.record.trainer, set()).add(source.record.settings.num_iterations)
    grouped: dict[tuple[str, str], list[Source]] = {}
    for model, source in sources.items():
        run = models[model][0]
        tag = run.tag
        if source.record:
            tag = _tag_of_settings(source.record.settings, len(lengths[source.record.trainer]) == 1)
        grouped.setdefault((run.trainer, tag), []).append(source)
    trainers = [trainer for trainer, _ in grouped]
    names = [
        f"{trainer}{TAG_SEPARATOR}{tag}" if tag and trainers.count(trainer) > 1 else trainer for trainer, tag in grouped
    ]
    return [Compared(name, tuple(group)) for name, group in zip(names, grouped.values(), strict=True)]


def _tag_of_settings(settings: RunSettings, one_length: bool) -> str:
    """Return the automatic tag of settings without the seed, and without a length that the trainer's runs share."""
    length = RunSettings().num_iterations if one_length else settings.num_iterations
    return automatic_tag(dataclasses.replace(settings, seed=0, num_iterations=length))
