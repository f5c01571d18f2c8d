"""The report on a study: the verdict of the smallest budget, every other budget, and what labels are worth."""

from __future__ import annotations

from pathlib import Path

import pytest

from nnssl.comparison import efficiency
from nnssl.errors import UsageError
from nnssl.reports.api import report
from nnssl.reports.study_facts import is_study, read_study
from tests.reports.browser import browser
from tests.reports.study_for_tests import make_sweep
from tests.reports.test_api import PANELS, READY, colours_of_the_canvas, needs_browser


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory):
    """Yield the folder of a study, with nnU-Net's variables set."""
    root = tmp_path_factory.mktemp("sweep")
    with pytest.MonkeyPatch.context() as patch:
        for name, folder in (("raw", "raw"), ("preprocessed", "pre"), ("results", "res")):
            patch.setenv(f"nnUNet_{name}", str(root / folder))
        patch.setattr(efficiency, "BAND_RESAMPLES", 99)
        yield make_sweep(root)


def test_the_verdict_is_that_of_the_smallest_budget(sweep: Path) -> None:
    study = read_study(sweep, None, None, None, "Dice")
    assert [group.labelled for group in study.comparison.groups] == ["2", "8"]
    assert study.main is study.comparison.groups[0]
    assert [method.name for method in study.main.methods] == ["SupervisedTrainer", "FixMatchTrainer"]
    assert [len(method.sources) for method in study.main.methods] == [2, 2]


def test_every_run_of_every_budget_is_shown(sweep: Path) -> None:
    titles = [run.title for run in read_study(sweep, None, None, None, "Dice").runs()]
    expected = [
        f"{trainer}, seed {seed}, fold 0, labelled {budget}"
        for budget in ("2", "8")
        for trainer in ("SupervisedTrainer", "FixMatchTrainer")
        for seed in (0, 1)
    ]
    assert titles == expected


def test_means_of_all_budgets_and_the_other_budgets_stand_in_tables(sweep: Path) -> None:
    study = read_study(sweep, None, None, None, "Dice")
    means, other = study.tables()
    assert list(means.header) == ["method", "2 labelled", "8 labelled"]
    few, many = (group.comparison for group in study.comparison.groups)
    baseline = next(row for row in means.rows if row[0] == "SupervisedTrainer")
    assert baseline[1].startswith(f"{few.baseline_mean:.3f} [")
    assert baseline[2].startswith(f"{many.baseline_mean:.3f} [")
    assert other.title == "2d, 8 labelled patients: methods beside the baseline"
    assert other.rows[1][0] == "FixMatchTrainer"
    assert len(study.sentences()) == 2  # FixMatch with 2 and with 8 labels
    assert "with FixMatchTrainer are worth" in study.sentences()[0]


def test_the_report_has_the_curve_and_says_which_budget_it_shows(sweep: Path, tmp_path: Path) -> None:
    index = report([sweep], output_folder=tmp_path / "report", cases=1).index
    text = index.read_text(encoding="utf-8")
    assert "This is the result for 2d, 2 labelled patients." in text
    assert (tmp_path / "report" / "pictures" / "label_efficiency_0.svg").is_file()
    assert 'src="pictures/label_efficiency_0.svg"' in text
    assert len(list((tmp_path / "report" / "pictures").glob("course_*.svg"))) == 8
    assert "nnssl_train Dataset001_A 2d 0 -tr FixMatchTrainer" in text


@needs_browser
@pytest.mark.nightly
def test_a_browser_shows_every_panel_of_a_study(sweep: Path, tmp_path: Path) -> None:
    index = report([sweep], output_folder=tmp_path / "report", cases=2).index
    with browser(tmp_path / "profile") as tab:
        tab.open(index)
        tab.wait_for(READY)
        shown = tab.value("[...document.querySelectorAll('main > section')].filter(s => s.offsetHeight > 40)"
                          ".map(s => s.id)")  # fmt: skip
        assert tuple(shown) == PANELS
        assert tab.value("document.querySelectorAll('#efficiency img, #efficiency table').length") == 3
        assert tab.value("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
        assert colours_of_the_canvas(tab, tmp_path / "canvas.png") > 50
        tab.open(index, 688)
        tab.call("Emulation.setEmulatedMedia", media="print")
        widest = "Math.max(...[...document.querySelectorAll('table')].map(t => t.getBoundingClientRect().right))"
        assert tab.value(widest) <= 688
    assert tab.problems == []
    assert {address.partition(":")[0] for address in tab.addresses} <= {"file", "data", "blob"}


def test_a_study_stands_alone(sweep: Path, tmp_path: Path) -> None:
    assert is_study([sweep])
    assert not is_study([tmp_path, sweep.parent])
    with pytest.raises(UsageError, match="stands alone"):
        report([sweep, tmp_path], output_folder=tmp_path / "report")
    assert not (tmp_path / "report").exists()
