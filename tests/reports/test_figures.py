from __future__ import annotations

from xml.etree import ElementTree

from nnssl.comparison.api import compare
from nnssl.reports.figures import course_figure, interval_figure, pseudo_figure
from tests.comparison.folders_for_tests import numbered, write_summary

ROWS = [
    {"iteration": 10, "loss": 1.0, "loss_supervised": 0.7, "pseudo_dice": 0.1, "pseudo_dice_1": 0.1},
    {"iteration": 20, "loss": 0.5, "loss_supervised": 0.4, "loss_pseudo": 0.2, "pseudo_dice": float("nan")},
]


def words(svg: bytes) -> str:
    """Return the texts that matplotlib notes beside the outlines of its letters."""
    ElementTree.fromstring(svg)
    return svg.decode()


def test_a_course_shows_every_loss_term_and_every_structure() -> None:
    text = words(course_figure(ROWS, ["heart & lung"]))
    for word in ("supervised", "pseudo", "loss (sum of the terms)", "heart &amp; lung", "pseudo-Dice"):
        assert f"<!-- {word}" in text


def test_shares_of_pseudo_labels_have_a_panel_of_their_own() -> None:
    assert "share of the pseudo-labels" not in words(course_figure(ROWS, ["lung"]))
    taught = [{"iteration": 10, "pseudo_share_1": 0.25}, {"iteration": 20, "pseudo_share_1": 0.5}]
    text = words(course_figure(ROWS + taught, ["lung"]))
    assert text.count("<!-- lung -->") == 2  # pseudo-Dice and share
    assert "<!-- share of the pseudo-labels -->" in text


def test_an_empty_course_is_a_picture() -> None:
    assert "<!-- iteration -->" in words(course_figure([{"iteration": 1}], []))


def test_the_intervals_name_methods_and_unit(tmp_path) -> None:
    base = write_summary(tmp_path / "base", numbered([0.5, 0.6, 0.7, 0.55, 0.65]))
    other = write_summary(tmp_path / "new_$one$", numbered([0.6, 0.7, 0.8, 0.66, 0.7]))
    result = compare([base, other], baseline=base)
    text = words(interval_figure(result))
    assert "<!-- new_$one$ -->" in text
    assert "Dice points (right is better)" in text


def test_scores_of_pseudo_labels_count_what_was_left_out() -> None:
    text = words(pseudo_figure({"a": (0.9, True), "b": (0.2, False), "c": (0.8, True)}))
    assert "<!-- kept: 2 -->" in text
    assert "<!-- left out: 1 -->" in text
