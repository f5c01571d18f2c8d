from __future__ import annotations

from nnssl.errors import NnsslError, UsageError, unknown_name


def test_an_unknown_name_lists_the_names_and_proposes_the_closest() -> None:
    error = unknown_name("trainer", "MeenTeacher", ["MeanTeacher", "Supervised"], option="-tr", otherwise="look")
    assert isinstance(error, UsageError)
    assert str(error).splitlines() == [
        "unknown trainer 'MeenTeacher'",
        "  where: -tr MeenTeacher",
        "  why:   known trainers: MeanTeacher, Supervised",
        "  run:   -tr MeanTeacher",
    ]
    assert unknown_name("trainer", "xyz", ["MeanTeacher"], option="-tr", otherwise="look").run == "look"


def test_parts_without_text_are_left_out_and_lines_are_aligned() -> None:
    error = NnsslError("what", why="one\ntwo")
    assert str(error) == "what\n  why:   one\n         two"
    assert error.as_dict() == {"error": "what", "where": "", "why": "one\ntwo", "run": "", "exit_code": 1}
