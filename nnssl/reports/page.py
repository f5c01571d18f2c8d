"""The page of a report: its content, its figures, and the HTML made from them; every name is escaped."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from nnssl.comparison.result import Comparison
from nnssl.comparison.scores import METRICS
from nnssl.comparison.sources import Compared
from nnssl.reports.colours import colour_of, names_of_values
from nnssl.reports.data_facts import check_of, data_table
from nnssl.reports.figures import SHARE, course_figure, efficiency_figure, interval_figure, pseudo_figure
from nnssl.reports.run_facts import RunFacts
from nnssl.reports.study_facts import ReportedStudy
from nnssl.reports.tables import (
    Table,
    cases_table,
    differences_tables,
    main_method,
    methods_table,
    structures_table,
    summary_sentences,
)
from nnssl.training.record import RunRecord, now
from nnssl.version import __version__

INDEX = "index.html"
NO_CHECK = "The data set was planned before its check was kept; plan it again to see the warnings here."


@dataclass(frozen=True)
class CasePicture:
    """One case of the page.

    Attributes:
        case: its name.
        title: why it is shown.
        scores: of each method, as text.
        picture: address of the picture, empty without one.
        notes: what could not be shown.
        volumes: address of the script with its volumes, empty where this stands in the page; None without volumes.
        layers: names of the volumes.
    """

    case: str
    title: str
    scores: str
    picture: str = ""
    notes: tuple[str, ...] = ()
    volumes: str | None = None
    layers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Figure:
    """A figure of the page: address, and the words that stand for it."""

    address: str
    text: str


@dataclass
class Page:
    """What stands on the page.

    Attributes:
        dataset: folder name of the data set, empty where it is not known.
        methods: the baseline first.
        comparison: None for a single method.
        metric: key of the metric.
        runs: what is known about each run.
        dataset_json: of the data set, empty without one.
        shown: the methods with masks in the pictures.
        cases: the cases with pictures.
        library: address of the viewer's script, empty where this stands in the page; None without a viewer.
        study: where the report is on a study; the methods are then those of its smallest label budget.
        intervals: the figure of the differences.
        efficiency: the figures of the scores over the label budgets.
        courses: the figures of the runs.
        pseudo: the figures of stored pseudo-labels.
    """

    dataset: str
    methods: list[Compared]
    comparison: Comparison | None
    metric: str
    runs: list[RunFacts]
    dataset_json: Mapping[str, Any] = field(default_factory=dict)
    shown: list[Compared] = field(default_factory=list)
    cases: list[CasePicture] = field(default_factory=list)
    library: str | None = None
    study: ReportedStudy | None = None
    intervals: Figure | None = None
    efficiency: list[Figure] = field(default_factory=list)
    courses: list[Figure] = field(default_factory=list)
    pseudo: list[Figure] = field(default_factory=list)

    @property
    def record(self) -> RunRecord | None:
        """The record of one of the runs, None without one."""
        return next((run.record for run in self.runs if run.record), None)

    def draw(self, save: Callable[[str, bytes], str]) -> None:
        """Draw the figures.

        Args:
            save: stores a picture under a name and returns its address.
        """
        if self.comparison is not None:
            address = save("differences.svg", interval_figure(self.comparison))
            self.intervals = Figure(address, "Mean difference of each method with its 95 % interval; dots are patients")
        if self.study is not None:
            metric = METRICS[self.metric]
            for number, (name, curve) in enumerate(self.study.comparison.curves.items()):
                address = save(f"label_efficiency_{number}.svg", efficiency_figure(curve, metric))
                text = f"{name}: mean {metric.title} over the number of labelled patients, with 95 % intervals"
                self.efficiency.append(Figure(address, text))
        names = list(self.methods[0].runs[0].structures.values())
        for number, run in enumerate(self.runs):
            if run.rows:
                address = save(f"course_{number}.svg", course_figure(run.rows, names))
                self.courses.append(Figure(address, f"{run.title}: {_course_text(run)}"))
            if run.pseudo_scores:
                address = save(f"pseudo_labels_{number}.svg", pseudo_figure(run.pseudo_scores))
                self.pseudo.append(Figure(address, f"{run.title}: scores of the stored pseudo-labels"))

    def tables(self) -> dict[str, list[Table]]:
        """Return the tables by the panel that they stand in."""
        compared = [] if self.comparison is None else [methods_table(self.comparison)]
        further = [] if self.comparison is None else differences_tables(self.comparison)
        return {
            "comparison": compared + further,
            "structures": [structures_table(self.methods)],
            "efficiency": [] if self.study is None else self.study.tables(),
            "cases": [cases_table(self.shown or self.methods, self.metric)],
            "data": [data_table(self.dataset, self.dataset_json, self.record)],
            "decisions": [_decisions(self.runs)],
            "versions": [_versions(self.runs)],
        }

    def warnings(self) -> list[str]:
        """Return the warnings of planning, and the notes of the comparison."""
        check = check_of(self.dataset, self.record.plans if self.record else "")
        found = [str(text) for text in check.get("warnings", ())] if check else [NO_CHECK]
        return found + (list(self.comparison.notes) if self.comparison else [])

    def commands(self) -> list[str]:
        """Return the commands that made the runs, each once; the command of planning stands first."""
        return list(dict.fromkeys(command for run in self.runs for command in run.commands))

    def viewer(self) -> dict[str, Any]:
        """Return what the viewer needs, as plain values."""
        labels = names_of_values(self.dataset_json)
        return {
            "cases": [
                {"number": number, "case": case.case, "scores": case.scores, "script": case.volumes,
                 "layers": list(case.layers)}
                for number, case in enumerate(self.cases)
                if case.volumes is not None
            ],
            "labels": [{"value": value, "name": name, "colour": colour_of(value)} for value, name in labels.items()],
        }  # fmt: skip


def _course_text(run: RunFacts) -> str:
    """Return what the figure of a run shows."""
    taught = any(key.startswith(SHARE) for row in run.rows for key in row)
    shares = ", and the share of each structure in the pseudo-labels of the teacher" if taught else ""
    return f"loss terms and pseudo-Dice over the iterations{shares}"


def render(page: Page, scripts: Sequence[str]) -> str:
    """Return the HTML of a page.

    Args:
        page: its content, with drawn figures.
        scripts: volumes and library of the viewer that stand inside the page.
    """
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    environment = Environment(
        loader=FunctionLoader(_asset), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    comparison = page.comparison
    values = {
        "page": page,
        "title": f"Report: {page.dataset or ', '.join(method.name for method in page.methods)}",
        "sentences": summary_sentences(comparison) if comparison else (),
        "verdict": main_method(comparison).verdict if comparison else "",
        "tables": page.tables(),
        "viewer": page.viewer(),
        "style": _asset("report.css"),
        "code": _asset("report.js"),
        "scripts": scripts,
        "made": now(),
        "version": __version__,
    }
    return environment.get_template("report.html").render(**values)


def viewer_library() -> str:
    """Return the script of the viewer, NiiVue, with its licence."""
    return f"/*\n{_asset('niivue.LICENSE')}*/\n{_asset('niivue.umd.js')}"


def _asset(name: str) -> str:
    return (files("nnssl.reports") / "page" / name).read_text(encoding="utf-8")


def _decisions(runs: Sequence[RunFacts]) -> Table:
    rows = []
    for run in runs:
        rows += [[run.title, each.name, each.value, each.default, each.meaning] for each in run.decisions]
    header = ("run", "setting", "value", "default", "meaning")
    return Table("Departures from the default settings", header, rows)


def _versions(runs: Sequence[RunFacts]) -> Table:
    rows = []
    for run in runs:
        if run.record is None or not run.record.sessions:
            continue
        session = run.record.sessions[-1]
        machine = session.machine
        rows.append(
            [
                run.title,
                str(run.record.settings.seed),
                run.record.state,
                session.started,
                ", ".join(f"{name} {version}" for name, version in session.versions.items()),
                f"{machine.platform}, {machine.processor}, {machine.device}" if machine else "unknown",
                session.git.commit[:12] + (" (changed)" if session.git.changed else "") if session.git else "–",
            ]
        )
    header = ("run", "seed", "state", "last start", "versions", "machine", "commit")
    return Table("Versions and seeds", header, rows)
