"""What a study is asked to train, and the runs that follow: trainers x settings x configurations x folds x budgets."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnssl.config import Value, config_with, format_value
from nnssl.config_source import settings_without_torch
from nnssl.data.splits import LabelBudget, budget_with_pick, parse_fold
from nnssl.errors import DataError, EnvironmentProblem, UsageError, unknown_name
from nnssl.names import DEFAULT_PLANS, TAG_SEPARATOR
from nnssl.registry import DEFAULT_METHOD, find_method
from nnssl.training.settings import RunSettings, automatic_tag

ALL_LABELS = "all"  # as a label budget: a run on every label of the fold
CONTROL = (DEFAULT_METHOD, ("unlabelled_weight=0",))  # the default method without losses on unlabelled scans
EXAMPLE = "nnssl_sweep -d 27 -c 3d_fullres -tr SupervisedTrainer FixMatchTrainer -seeds 0 1 -o FOLDER"


@dataclass(frozen=True)
class Study:
    """What a study is asked to train.

    Attributes:
        dataset: id or folder name.
        configurations: for instance `3d_fullres`; at least one.
        trainers: class names of the methods; at least one.
        control: also train the regime control, the default method with `unlabelled_weight=0`.
        settings: `name=value` for every run.
        variants: groups of `name=value`; each trainer that has the settings of a group is trained with the group.
        folds: fold numbers as text, or `all`.
        labelled: label budgets, `7` or `10%`; `all` stands for every label.
        picks: number of choices of the labelled patients of a budget, at least 1.
        seeds: of the runs.
        num_iterations: length of every run, None for the default.
        plans: plans name without the tag of a budget.
        bf16: calculate in bfloat16.
        hardware: `cpu` for missing plans that train on two cores; None takes the kind of the data set's other plans.
    """

    dataset: str
    configurations: tuple[str, ...]
    trainers: tuple[str, ...]
    control: bool = False
    settings: tuple[str, ...] = ()
    variants: tuple[tuple[str, ...], ...] = ()
    folds: tuple[str, ...] = ("0",)
    labelled: tuple[str, ...] = (ALL_LABELS,)
    picks: int = 1
    seeds: tuple[int, ...] = (0,)
    num_iterations: int | None = None
    plans: str = DEFAULT_PLANS
    bf16: bool = False
    hardware: str | None = None

    def __post_init__(self) -> None:
        for option, values in (("-c", self.configurations), ("-tr", self.trainers), ("-f", self.folds),
                               ("-labelled", self.labelled), ("-seeds", self.seeds)):  # fmt: skip
            if not values:
                raise UsageError(f"a study needs at least one value of {option}", run=EXAMPLE)
        if self.picks < 1:
            raise UsageError("-picks must be at least 1", where=f"-picks {self.picks}")
        if self.hardware not in (None, "cpu"):
            raise unknown_name("hardware", str(self.hardware), ("cpu",), option="-hardware")
        if TAG_SEPARATOR in self.plans:
            raise UsageError(
                "the plans name is given without the tag of a label budget",
                where=f"-p {self.plans}",
                run=f"-p {self.plans.partition(TAG_SEPARATOR)[0]} -labelled N",
            )
        for fold in self.folds:
            parse_fold(fold, "-f")
        for budget in self.labelled:
            if budget != ALL_LABELS and LabelBudget.parse(budget).pick:
                raise UsageError("-picks chooses the patients of a budget", where=f"-labelled {budget}", run="-picks N")


ATTRIBUTES = tuple(item.name for item in dataclasses.fields(Study))


@dataclass(frozen=True)
class StudyRun:
    """One run of a study: one fold of one trainer with its settings.

    Attributes:
        dataset: folder name.
        configuration: for instance `3d_fullres`.
        fold: fold number as text, or `all`.
        trainer: class name.
        plans: plans name without the tag of the budget.
        settings: length, seed, budget and settings of the method; `tag` is the automatic one.
    """

    dataset: str
    configuration: str
    fold: str
    trainer: str
    plans: str
    settings: RunSettings

    @property
    def budget(self) -> LabelBudget | None:
        """The label budget, None for every label."""
        return LabelBudget.parse(self.settings.labelled) if self.settings.labelled else None

    @property
    def arguments(self) -> list[str]:
        """The arguments of `nnssl_train`."""
        settings = self.settings
        words = [self.dataset, self.configuration, self.fold, "-tr", self.trainer]
        words += ["-p", self.plans] if self.plans != DEFAULT_PLANS else []
        words += [*_budget_words(self.budget), "-seed", str(settings.seed)]
        words += ["-num_iterations", str(settings.num_iterations)]
        words += ["--bf16"] if settings.bf16 else []
        changed = [f"{name}={format_value(value)}" for name, value in settings.config.items()]
        return [*words, "--set", *changed] if changed else words

    @property
    def command(self) -> str:
        """The command line of the run. Two runs are the same if their command lines are."""
        return shlex.join(["nnssl_train", *self.arguments])

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        settings, budget = self.settings, self.budget
        return {
            "command": self.command,
            "dataset": self.dataset,
            "configuration": self.configuration,
            "fold": self.fold,
            "trainer": self.trainer,
            "labelled": str(dataclasses.replace(budget, pick=0)) if budget else None,
            "pick": budget.pick if budget else 0,
            "seed": settings.seed,
            "num_iterations": settings.num_iterations,
            "settings": settings.config,
            "tag": settings.tag,
        }


@dataclass(frozen=True)
class StudyPlan:
    """Planning and preprocessing that runs of a study need: one call for each budget, pick and fold.

    Attributes:
        dataset: folder name.
        configurations: to preprocess.
        plans: plans name without the tag of the budget.
        budget: the label budget, None for every label.
        fold: fold of the budget; the fold does not matter without a budget.
        hardware: `cpu`, or None.
    """

    dataset: str
    configurations: tuple[str, ...]
    plans: str
    budget: LabelBudget | None
    fold: str
    hardware: str | None = None

    @property
    def arguments(self) -> list[str]:
        """The arguments of `nnssl_plan_and_preprocess`."""
        words = ["-d", self.dataset, "-c", *self.configurations]
        words += [*_budget_words(self.budget), "-f", self.fold] if self.budget else []
        words += ["-overwrite_plans_name", self.plans] if self.plans != DEFAULT_PLANS else []
        return [*words, "-hardware", self.hardware] if self.hardware else words

    @property
    def command(self) -> str:
        """The command line."""
        return shlex.join(["nnssl_plan_and_preprocess", *self.arguments])


@dataclass(frozen=True)
class _Method:
    trainer: str
    config: dict[str, Value] = field(default_factory=dict)


def study_runs(study: Study) -> list[StudyRun]:
    """Return the runs of a study, without repetitions: all methods of the first budget, pick, fold and seed come first.

    Raises:
        UsageError: a trainer, setting or budget is wrong.
    """
    methods = list(_methods(study))
    length = RunSettings().num_iterations if study.num_iterations is None else study.num_iterations
    found: dict[str, StudyRun] = {}
    for labelled, fold, configuration, seed in _conditions(study):
        for method in methods:
            settings = RunSettings(length, seed, labelled, study.bf16, method.config)
            settings = dataclasses.replace(settings, tag=automatic_tag(settings))
            run = StudyRun(study.dataset, configuration, fold, method.trainer, study.plans, settings)
            found.setdefault(run.command, run)
    return list(found.values())


def study_plans(study: Study) -> list[StudyPlan]:
    """Return the planning that the runs of a study need, one call for each budget, pick and fold."""
    found: dict[str, StudyPlan] = {}
    for labelled, fold, _, _ in _conditions(study):
        budget = LabelBudget.parse(labelled) if labelled else None
        first = fold if budget else "0"
        each = StudyPlan(study.dataset, study.configurations, study.plans, budget, first, study.hardware)
        found.setdefault(each.command, each)
    return list(found.values())


def study_of(values: Mapping[str, Any]) -> Study:
    """Return the study with these attributes; lists may stand for tuples.

    Raises:
        UsageError: an attribute without a default is missing, or a value is wrong.
    """
    flags = {"dataset": "-d", "configurations": "-c", "trainers": "-tr"}
    missing = [flag for name, flag in flags.items() if not values.get(name)]
    if missing:
        raise UsageError(f"a study needs {' and '.join(missing)}", run=EXAMPLE)
    plain: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    if "variants" in plain:
        plain["variants"] = tuple(map(tuple, plain["variants"]))
    return Study(**plain)


def read_study(file: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a `study.toml`, with the given ones (from the command line) in their place.

    Args:
        file: keys are the attributes of `Study`; `[settings]` is a table, and each `[[variants]]` is one.
        given: attribute -> value.

    Raises:
        DataError: the file is missing, no TOML, or has unknown keys.
        EnvironmentProblem: this Python reads no TOML.
    """
    try:
        import tomllib  # type: ignore[import-not-found, unused-ignore]
    except ImportError:  # Python 3.10
        try:
            import tomli as tomllib  # type: ignore[import-not-found, no-redef, unused-ignore]
        except ImportError:
            raise EnvironmentProblem("Python 3.10 reads no TOML files", where=file, run="pip install tomli") from None
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError("the study cannot be read", where=file, why=str(error.strerror)) from None
    except ValueError as error:
        raise DataError("the study is not valid TOML", where=file, why=str(error)) from None
    known = ATTRIBUTES
    for key in content:
        if key not in known:
            raise unknown_name("key", key, known, option=str(file))
    return {**{key: _plain(key, value, file) for key, value in content.items()}, **given}


def _plain(key: str, value: Any, file: Path) -> Any:  # noqa: ANN401 - TOML is any nesting of plain values
    """Return a value of the file as `Study` has it; a single value stands for a list of one."""
    if key == "settings":
        return _pairs(value, key, file)
    if key == "variants":
        return tuple(_pairs(each, key, file) for each in (value if isinstance(value, list) else [value]))
    kinds: dict[str, type] = {"picks": int, "num_iterations": int, "control": bool, "bf16": bool}
    if key in ("dataset", "plans", "hardware"):
        return str(value)
    if key in kinds:
        if type(value) is not kinds[key]:
            raise DataError(f"'{key}' must be of the type {kinds[key].__name__}", where=file, why=f"{key} = {value!r}")
        return value
    values = value if isinstance(value, list) else [value]
    if key != "seeds":
        return tuple(map(str, values))
    if not all(type(each) is int for each in values):
        raise DataError("'seeds' must be whole numbers", where=file, why=f"seeds = {value!r}")
    return tuple(values)


def _pairs(table: Any, key: str, file: Path) -> tuple[str, ...]:  # noqa: ANN401
    if not isinstance(table, Mapping):
        raise DataError(f"'{key}' must be a table of settings", where=file, run=f"[{key}], then NAME = VALUE")
    return tuple(f"{name}={value}" for name, value in table.items())


def _conditions(study: Study) -> Iterator[tuple[str | None, str, str, int]]:
    """Yield budget with pick, fold, configuration and seed; every label is there once, whatever the picks."""
    for budget in dict.fromkeys(study.labelled):
        for pick in range(1 if budget == ALL_LABELS else study.picks):
            labelled = None if budget == ALL_LABELS else budget_with_pick(str(LabelBudget.parse(budget)), pick)
            for fold in dict.fromkeys(study.folds):
                for configuration in dict.fromkeys(study.configurations):
                    for seed in dict.fromkeys(study.seeds):
                        yield labelled, fold, configuration, seed


def _methods(study: Study) -> Iterator[_Method]:
    """Yield trainers with their settings. A trainer without the settings of any variant has one run without them."""
    used: set[int] = set()
    for trainer in dict.fromkeys(study.trainers):
        fitting = [number for number, variant in enumerate(study.variants) if _has(trainer, variant)]
        used.update(fitting)
        for variant in [study.variants[number] for number in fitting] or [()]:
            yield _Method(trainer, _config(trainer, (*study.settings, *variant)))
    if study.control:
        trainer, settings = CONTROL
        yield _Method(trainer, _config(trainer, (*study.settings, *settings)))
    for number, variant in enumerate(study.variants):
        if number not in used:
            raise UsageError(
                "no trainer of the study has these settings",
                where=f"--variant {' '.join(variant)}",
                run="nnssl_methods --verbose lists the settings of each trainer",
            )


def _has(trainer: str, variant: Sequence[str]) -> bool:
    method = find_method(trainer)
    config_class = settings_without_torch(method) or method.load().config_class
    names = {item.name for item in dataclasses.fields(config_class)}
    return all(text.partition("=")[0] in names for text in variant)


def _config(trainer: str, settings: Sequence[str]) -> dict[str, Value]:
    method = find_method(trainer)
    changed: dict[str, Value] = config_with(
        settings_without_torch(method) or method.load().config_class, settings
    ).changes()
    return changed


def _budget_words(budget: LabelBudget | None) -> list[str]:
    if budget is None:
        return []
    pick = ["-pick", str(budget.pick)] if budget.pick else []
    return ["-labelled", str(dataclasses.replace(budget, pick=0)), *pick]
