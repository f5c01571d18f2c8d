from __future__ import annotations

import logging

from nnssl.inference.progress import Progress


def test_bar_moves_inside_a_case_but_never_beyond_it(capsys):
    with Progress(2, "bar") as progress:
        progress.steps(4)
        for _ in range(6):  # a case may be run again after the GPU ran out of memory
            progress.step()
        assert progress._bar.n == 1
        progress.finished("a")
        progress.steps(2)
        progress.step()
        assert progress._bar.n == 1.5
        progress.finished("b")
    printed = capsys.readouterr()
    assert "100%" in printed.err
    assert "2.0/2 cases" in printed.err
    assert not printed.out


def test_a_line_each_tenth(caplog):
    caplog.set_level(logging.INFO)
    with Progress(25, "lines") as progress:
        for case in range(25):
            progress.steps(1)
            progress.step()
            progress.finished(str(case))
    assert len(caplog.messages) == 10
    assert caplog.messages[-1] == "predicted 25 of 25 cases"


def test_off(caplog, capsys):
    caplog.set_level(logging.INFO)
    with Progress(3, "off") as progress:
        progress.finished("a")
    assert not caplog.messages
    assert capsys.readouterr() == ("", "")
