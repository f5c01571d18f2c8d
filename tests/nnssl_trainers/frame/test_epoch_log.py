from __future__ import annotations

import csv
import json
from pathlib import Path

from nnssl_trainers.frame.epoch_log import EpochLog, epoch_line


def row(iteration: int, **more: float) -> dict[str, float]:
    usual = {"loss": 1.25, "pseudo_dice": 0.5, "seconds_per_iteration": 0.25, "data_wait_share": 0.125}
    return {"iteration": iteration, **usual, **more}


def test_both_files_hold_every_row_and_every_column(tmp_path: Path) -> None:
    log = EpochLog(tmp_path)
    log.append(row(3))
    log.append(row(6, loss_consistency=0.1))
    assert [json.loads(line) for line in log.jsonl.read_text().splitlines()] == log.rows
    with log.csv.open(newline="") as file:
        first, second = csv.DictReader(file)
    assert list(first) == [*row(3), "loss_consistency"]
    assert (first["iteration"], first["loss_consistency"]) == ("3", "")
    assert (second["iteration"], second["loss_consistency"]) == ("6", "0.1")


def test_a_continued_run_drops_the_rows_that_come_again(tmp_path: Path) -> None:
    log = EpochLog(tmp_path)
    for iteration in (3, 6, 9):
        log.append(row(iteration))
    continued = EpochLog(tmp_path)
    continued.rewind(7)
    assert [each["iteration"] for each in continued.rows] == [3, 6]
    continued.append(row(9, loss=0.75))
    assert [json.loads(line)["loss"] for line in log.jsonl.read_text().splitlines()] == [1.25, 1.25, 0.75]


def test_a_later_row_leaves_the_bytes_before_it(tmp_path: Path) -> None:
    log = EpochLog(tmp_path)
    log.append(row(3))
    before = {file: (file.read_bytes(), file.stat().st_ino) for file in (log.jsonl, log.csv)}
    log.append(row(6, loss=0.5))
    for file, (content, inode) in before.items():
        assert file.stat().st_ino == inode  # a file that is written anew is another one
        assert file.read_bytes().startswith(content)
    assert [json.loads(line) for line in log.jsonl.read_text().splitlines()] == log.rows
    with log.csv.open(newline="") as file:
        assert [float(each["loss"]) for each in csv.DictReader(file)] == [1.25, 0.5]


def test_half_a_line_after_a_kill_is_dropped(tmp_path: Path) -> None:
    log = EpochLog(tmp_path)
    log.append(row(3))
    whole = log.jsonl.read_text()
    log.jsonl.write_text(whole + whole[:20])
    continued = EpochLog(tmp_path)
    continued.rewind(100)
    assert continued.rows == [row(3)]
    continued.append(row(6))
    assert [json.loads(line)["iteration"] for line in log.jsonl.read_text().splitlines()] == [3, 6]


def test_a_new_run_has_no_rows(tmp_path: Path) -> None:
    log = EpochLog(tmp_path)
    log.rewind(100)
    assert log.rows == []


def test_the_line_names_terms_and_structures() -> None:
    text = epoch_line(
        row(750, pseudo_dice_1=0.75, pseudo_dice_2=float("nan")),
        1000,
        {"supervised": 1.0, "consistency": 0.25},
        ["core", "rim"],
    )
    assert text == (
        "iteration 750/1000  loss 1.250 (supervised 1.000, consistency 0.250)  "
        "pseudo-Dice 0.500 (core 0.750, rim nan)  0.250 s/iteration  data wait 12 %  ETA 0:01:02"
    )


def test_a_single_term_and_a_single_structure_need_no_list() -> None:
    text = epoch_line(row(1000, pseudo_dice_1=0.5), 1000, {"supervised": 1.25}, ["core"])
    assert text == "iteration 1000/1000  loss 1.250  pseudo-Dice 0.500  0.250 s/iteration  data wait 12 %  ETA 0:00:00"
