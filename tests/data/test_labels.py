from __future__ import annotations

from pathlib import Path

import pytest

from nnssl.data.labels import DeclaredLabels, find_label_problems, label_parts, parse_labels
from nnssl.evaluation.structures import declared_structures


@pytest.mark.parametrize(
    ("labels", "order", "fragment"),
    [
        (["background", "core"], None, "must map names to values"),
        ({"0": "background", "1": "core"}, None, "turn it round"),
        ({"background": 1, "core": 0}, None, "background is 1"),
        ({"background": 0, "core": 2}, None, "must be consecutive: [0, 1]"),
        ({"background": 0, "core": "1"}, None, "core is '1', it must be an integer"),
        ({"background": 0, "core": True}, None, "core is True"),
        ({"background": 0, "core": 1, "ignore": 3}, None, "ignore is 3, it must be the highest value: 2"),
        ({"background": 0, "whole": [1, 2], "core": 2}, None, "one value for each of whole, core"),
        ({"background": 0, "whole": [1, 2], "core": [2]}, [1], "one value for each of whole, core"),
    ],
)
def test_malformed_labels(labels: object, order: object, fragment: str) -> None:
    problems = find_label_problems({"labels": labels, "regions_class_order": order})
    assert len(problems) == 1
    assert fragment in problems[0]


@pytest.mark.parametrize(
    ("labels", "order", "expected"),
    [
        ({"background": 0, "core": 1}, None, (0, 1)),
        ({"background": 0, "core": 1, "ignore": 2}, None, (0, 1, 2)),
        ({"background": 0, "whole": [1, 2, 3], "core": [2, 3], "ignore": 4}, [1, 2], (0, 1, 2, 3, 4)),
        ({"background": 0, "core": [1]}, None, (0, 1)),
    ],
)
def test_good_labels_are_those_of_nnunet(labels: dict[str, object], order: object, expected: tuple[int, ...]) -> None:
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    manager = LabelManager(labels, order)
    ignored = [manager.ignore_label] if manager.has_ignore_label else []
    content = {"labels": labels, "regions_class_order": order}
    assert find_label_problems(content) == []
    assert parse_labels(content).allowed_in_references == expected
    assert [*manager.all_labels, *ignored] == list(expected)


@pytest.mark.parametrize(
    ("labels", "foreground", "allowed", "ignore"),
    [
        ({"background": 0, "liver": 1, "spleen": 3}, {1: "liver", 3: "spleen"}, (0, 1, 3), None),
        ({"background": 0, "liver": "1", "ignore": 2}, {1: "liver"}, (0, 1), 2),
        ({"background": 0, "liver": [1]}, {1: "liver"}, (0, 1), None),
        ({"liver": 2}, {2: "liver"}, (0, 2), None),
        ({"background": 0}, {}, (0,), None),
        (
            {"background": 0, "whole": [1, 2], "core": [2], "rim": 1, "ignore": [3]},
            {(1, 2): "whole", (2,): "core", 1: "rim"},
            (0, 1, 2),
            3,
        ),
    ],
)
def test_parsed_labels(labels: dict[str, object], foreground: object, allowed: object, ignore: int | None) -> None:
    found = parse_labels({"labels": labels})
    assert (found.foreground, found.allowed, found.ignore) == (foreground, allowed, ignore)
    assert found.allowed_in_references == (found.allowed if ignore is None else (*found.allowed, ignore))
    assert found.has_regions == ("whole" in labels)
    if foreground:
        structures = declared_structures({"labels": labels}, Path("dataset.json"))
        assert (structures.names, structures.ignore_label) == (found.foreground, found.ignore)


def test_the_order_of_dataset_json_is_kept() -> None:
    found = parse_labels({"labels": {"b": 2, "background": 0, "a": 1}})
    assert found == DeclaredLabels({"b": (2,), "background": (0,), "a": (1,)})
    assert list(found.foreground.values()) == ["b", "a"]


@pytest.mark.parametrize("content", [{}, {"labels": ["a"]}, {"labels": {"a": None}}, {"labels": {"a": [[1]]}}])
def test_labels_of_another_form(content: dict[str, object]) -> None:
    with pytest.raises(TypeError):
        parse_labels(content)


def test_text_is_no_label_value() -> None:
    with pytest.raises(ValueError, match="background"):
        parse_labels({"labels": {"0": "background"}})


def test_parts_of_a_label_and_of_a_region() -> None:
    assert label_parts(3) == label_parts([3]) == (3,)
    assert label_parts((1, 2)) == label_parts([1, 2]) == (1, 2)
