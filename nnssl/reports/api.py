"""`nnssl.report`: a folder, or one file, that shows in a browser what runs reached, on which cases, and how."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nnssl.comparison.api import compare_methods
from nnssl.comparison.result import Comparison
from nnssl.comparison.scores import METRICS
from nnssl.comparison.sources import Compared, methods_of_dataset, named_methods, read_source
from nnssl.errors import UsageError, unknown_name
from nnssl.names import FOLD_PREFIX, SUMMARY_JSON, VALIDATION_FOLDER
from nnssl.reports.case_files import CaseFiles, dataset_of, files_of_cases
from nnssl.reports.case_pictures import draw_case, read_case, viewer_volumes
from nnssl.reports.colours import names_of_values
from nnssl.reports.data_facts import dataset_json_of
from nnssl.reports.page import INDEX, CasePicture, Page, render, viewer_library
from nnssl.reports.run_facts import facts_of_runs
from nnssl.reports.study_facts import is_study, read_study
from nnssl.reports.tables import case_scores, main_method, rank_cases, value_text
from nnssl.system.files import check_output_file, check_writable, write_bytes, write_text
from nnssl.training.runs import runs

FIGURES = ("case_*.png", "differences.svg", "label_efficiency_*.svg", "course_*.svg", "pseudo_labels_*.svg")
PICTURES, VOLUMES, LIBRARY = "pictures", "volumes", "niivue.umd.js"
OWN_FILES = (LIBRARY, f"{VOLUMES}/[0-9]*.js", *(f"{PICTURES}/{name}" for name in FIGURES))


@dataclass
class Store:
    """Where the pictures and volumes of a report go: into files beside the page, or into the page itself.

    Attributes:
        folder: of the report.
        inside: everything stands in the page.
        scripts: with `inside`: the scripts with the volumes.
        files: what was written beside the page.
        cases: number of cases in the viewer.
    """

    folder: Path
    inside: bool
    scripts: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    cases: int = 1

    def picture(self, name: str, content: bytes) -> str:
        """Return the address of a picture; the ending of the name, `.svg` or `.png`, is its format."""
        if self.inside:
            kind = "svg+xml" if name.endswith(".svg") else "png"
            return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
        self._write(f"{PICTURES}/{name}", content)
        return f"{PICTURES}/{name}"

    def script(self, name: str, text: str) -> str:
        """Return the address of a script, empty where it stands in the page."""
        if self.inside:
            self.scripts.append(text)
            return ""
        self._write(name, text.encode())
        return name

    def remove_old(self) -> None:
        """Remove the pictures and volumes of an earlier report in this folder: they may show other patients."""
        for pattern in OWN_FILES:
            for file in set(self.folder.glob(pattern)) - set(self.files):
                file.unlink()

    def _write(self, name: str, content: bytes) -> None:
        write_bytes(self.folder / name, content)
        self.files.append(self.folder / name)


@dataclass(frozen=True)
class ReportResult:
    """What `report` wrote.

    Attributes:
        index: the page to open.
        comparison: the comparison behind the verdict, None for a single method.
        cases: the cases with pictures, the worst first.
        size_bytes: of all files together.
    """

    index: Path
    comparison: Comparison | None
    cases: tuple[str, ...]
    size_bytes: int


def report(  # noqa: PLR0913 - the public API names every option
    places: Sequence[str | Path] = (),
    *,
    output_folder: str | Path,
    dataset: str | int | None = None,
    plans: str | None = None,
    configuration: str | None = None,
    fold: str | int | None = None,
    baseline: str | Path | None = None,
    metric: str = "Dice",
    cases: int = 3,
    single_file: bool = False,
) -> ReportResult:
    """Write a report on runs: verdict, tables, curves, best and worst cases, a viewer, data, settings and commands.

    The page needs neither a network nor a server. It holds scans and case names: it belongs where the data belong.

    Args:
        places: as for `nnssl.compare`: runs, or folders with `summary.json`, `NAME=PLACE` gives a name. A folder that
            holds several of these stands for all of them. A single run has a report without a verdict. The folder of a
            study stands alone: the verdict is that of its smallest label budget.
        output_folder: `index.html` and its files go there; existing files of the same names are replaced.
        dataset: instead of places: all finished and validated runs of this data set.
        plans: as for `nnssl.compare`, with `dataset`; so are `configuration` and `fold`.
        configuration: see `plans`; also with a study.
        fold: see `plans`; also with a study.
        baseline: as for `nnssl.compare`.
        metric: as for `nnssl.compare`.
        cases: number of the worst and of the best cases with pictures, >= 0.
        single_file: everything stands in `index.html`.

    Raises:
        UsageError: an argument is wrong, or nothing says which run is the baseline.
        DataError: a place holds no scores.
        EnvironmentProblem: a file cannot be written.
    """
    folder = Path(output_folder)
    _check(places, dataset, metric, cases)
    check_writable(folder, "the folder of the report", "choose another folder with -o")
    check_output_file(folder / INDEX)
    study = read_study(places[0], baseline, configuration, fold, metric) if is_study(places) else None
    comparison: Comparison | None = None
    if study is not None:
        methods, comparison = list(study.main.methods), study.main.comparison
    else:
        methods = _methods(places, dataset, plans, configuration, fold, baseline)
        comparison = compare_methods(methods[0], methods[1:], metric) if methods[1:] else None
    facts = study.runs() if study else [each for method in methods for each in facts_of_runs(method)]
    store = Store(folder, single_file)
    page = Page(dataset_of(methods), methods, comparison, metric, facts, study=study)
    folders = [place for method in methods for source in method.sources for place in source.scores.folders]
    page.dataset_json = dataset_json_of(page.dataset, folders)
    shown = _show_cases(page, store, cases)
    if any(picture.volumes is not None for picture in page.cases):
        page.library = store.script(LIBRARY, viewer_library())
    page.draw(store.picture)
    write_text(folder / INDEX, render(page, store.scripts))
    store.remove_old()
    size = sum(file.stat().st_size for file in [folder / INDEX, *store.files])
    return ReportResult(folder / INDEX, comparison, tuple(shown), size)


def _methods(
    places: Sequence[str | Path],
    dataset: str | int | None,
    plans: str | None,
    configuration: str | None,
    fold: str | int | None,
    baseline: str | Path | None,
) -> list[Compared]:
    """Return the methods that places or a data set mean, the baseline first."""
    if dataset is not None:
        places = _only_model(dataset, plans, configuration, fold)
    if places:
        return _named(places, baseline)
    name = None if baseline is None else str(baseline)
    base, others = methods_of_dataset(dataset or "", plans, configuration, fold, name)
    return [base, *others]


def _check(places: Sequence[str | Path], dataset: str | int | None, metric: str, cases: int) -> None:
    if metric not in METRICS:
        raise unknown_name("metric", metric, METRICS, option="-metric")
    if cases < 0:
        raise UsageError(f"-cases must be 0 or more, got {cases}")
    if bool(places) == (dataset is not None):
        rest = ", not both" if places else ""
        raise UsageError(
            f"give the runs or folders of the report, or a data set{rest}", run="nnssl_report RUN… -o FOLDER, or -d ID"
        )


def _only_model(dataset: str | int, plans: str | None, configuration: str | None, fold: str | int | None) -> list[Path]:
    """Return the folder of the only validated model of a data set; empty where there are several, or none."""
    found = runs(dataset, plans=plans, configuration=configuration, fold=fold)
    models = {run.folder.parent for run in found if run.state == "done" and _has_scores(run.folder)}
    return list(models) if len(models) == 1 else []


def _named(places: Sequence[str | Path], baseline: str | Path | None) -> list[Compared]:
    """Return the methods that a user named, the baseline first."""
    named = [inner for place in places for inner in _expanded(place)]
    if len(named) > 1 or baseline is not None:
        base, methods = named_methods(named, baseline)
        return [base, *methods]
    name, separator, place = named[0].partition("=")
    plain = not separator or "/" in name or Path(named[0]).exists()
    source = read_source(named[0] if plain else place)
    return [Compared(source.name if plain else name, (source,))]


def _expanded(place: str | Path) -> list[str]:
    """Return a place, or the places in a folder that is none itself: a study."""
    folder = Path(place)
    if not folder.is_dir() or _has_scores(folder):
        return [str(place)]
    inner = [str(each) for each in sorted(folder.iterdir()) if each.is_dir() and _has_scores(each)]
    return inner or [str(place)]


def _has_scores(folder: Path) -> bool:
    patterns = (
        SUMMARY_JSON,
        f"{VALIDATION_FOLDER}/{SUMMARY_JSON}",
        f"{FOLD_PREFIX}*/{VALIDATION_FOLDER}/{SUMMARY_JSON}",
    )
    return any(next(folder.glob(pattern), None) for pattern in patterns)


def _show_cases(page: Page, store: Store, count: int) -> list[str]:
    """Draw the worst and the best cases of the main method, and store their volumes; return their names."""
    method = page.methods[-1]
    if page.comparison is not None:
        chosen = main_method(page.comparison).name
        method = next(each for each in page.methods if each.name == chosen)
    base = [] if method is page.methods[0] else [page.methods[0]]
    page.shown = [*base, method]
    ranked = rank_cases(method, page.metric)
    worst = ranked[: min(count, len(ranked))]
    best = list(reversed(ranked[len(worst) :]))[:count]
    store.cases = max(1, len(worst) + len(best))
    files = files_of_cases(page.shown)
    scores = {each.name: case_scores(each.runs[0], page.metric) for each in page.shown}
    described = METRICS[page.metric]
    for number, case in enumerate([*worst, *best]):
        text = ", ".join(
            f"{name} {value_text(found[case], described)}" for name, found in scores.items() if case in found
        )
        title = f"{'worst' if case in worst else 'best'} cases of {method.name}"
        page.cases.append(_picture(files.get(case, CaseFiles(case)), number, (title, text), page, store))
    return [*worst, *best]


def _picture(files: CaseFiles, number: int, texts: tuple[str, str], page: Page, store: Store) -> CasePicture:
    volumes = read_case(files)
    title, scores = texts
    if volumes is None or not (volumes.masks or volumes.reference):
        return CasePicture(files.case, title, scores, notes=("neither masks nor reference are found",))
    address = store.picture(f"case_{number}.png", draw_case(volumes, names_of_values(page.dataset_json)))
    layers = viewer_volumes(volumes, store.cases)
    content = json.dumps(layers).replace("<", "\\u003c")  # a name must not end the script
    script = f'(window.reportVolumes=window.reportVolumes||{{}})["{number}"]={content};'
    place = store.script(f"{VOLUMES}/{number}.js", script)
    return CasePicture(files.case, title, scores, address, volumes.notes, place, tuple(layers))
