from __future__ import annotations

import json
from pathlib import Path

import pytest

from nnssl.config import config_with
from nnssl_trainers.methods.dtlp import DTLPConfig
from nnssl_trainers.parts.dtlp_settings import COLUMNS, GENERIC, TABLE_1, with_table_1


def table_of(folder: Path, family: str | None, *settings: str) -> list[float | None]:
    fold = {"train": ["a"], "val": ["b"], **({} if family is None else {"protocol": family})}
    (folder / "splits_final.json").write_text(json.dumps([fold]))
    config = with_table_1(config_with(DTLPConfig, list(settings)), folder)
    return [getattr(config, name) for name in COLUMNS]


@pytest.mark.parametrize(
    ("family", "row"),
    [
        ("la", (0.7, 2.0, 0.1, 0.2, 1.2)),
        ("synapse", (0.5, 0.1, 0.2, 0.5, 1.0)),
        ("synapse-dhc", (0.5, 0.1, 0.2, 0.5, 1.0)),
        ("amos", (0.5, 0.1, 0.2, 0.5, 1.3)),
        ("mmwhs-mr-to-ct", (0.5, 1.0, 0.1, 0.1, 0.9)),
        ("mnms-to-a", (0.5, 1.0, 0.1, 0.1, 1.0)),
        ("acdc", (0.5, 1.0, 0.1, 0.1, 1.0)),
        (None, (0.5, 1.0, 0.1, 0.1, 1.0)),
    ],
)
def test_the_protocol_chooses_the_row(family: str | None, row: tuple[float, ...], tmp_path: Path) -> None:
    assert table_of(tmp_path, family) == [*row, None]


@pytest.mark.parametrize(("family", "rate"), [("amos", 0.03), ("mmwhs-ct-to-mr", 0.005), ("brats2019", 0.01)])
def test_the_paper_presets_have_its_learning_rate(family: str, rate: float, tmp_path: Path) -> None:
    assert table_of(tmp_path, family, "preset=paper")[-1] == rate
    assert table_of(tmp_path, family, "preset=paper", "learning_rate=0.5")[-1] == 0.5


def test_a_given_setting_wins_and_columns_can_be_exchanged(tmp_path: Path) -> None:
    assert table_of(tmp_path, "la", "mask_ratio=0.4", "rec_weight=0") == [0.4, 2.0, 0.1, 0.0, 1.2, None]
    assert table_of(tmp_path, "la", "swap_kd_rec=on") == [0.7, 2.0, 0.2, 0.1, 1.2, None]


@pytest.mark.parametrize(
    ("settings", "terms"),
    [
        ([], {"mix": 1.0, "mic": 1.0, "kd": 0.1, "rec": 0.1, "correlation": 1.0}),
        (["teachers=first"], {"mix": 1.0, "mic": 1.0, "kd": 0.1, "correlation": 1.0}),
        (["teachers=second"], {"mix": 1.0, "mic": 1.0, "rec": 0.1, "correlation": 1.0}),
        (["preset=adnd"], {"pseudo": 20.0}),
    ],
)
def test_weights_of_the_unlabelled_terms(settings: list[str], terms: dict[str, float], tmp_path: Path) -> None:
    (tmp_path / "splits_final.json").write_text(json.dumps([{"train": ["a"], "val": ["b"]}]))
    assert with_table_1(config_with(DTLPConfig, settings), tmp_path).unlabelled_weights() == terms


def test_every_row_is_complete() -> None:
    assert {len(row) for row in (*TABLE_1.values(), GENERIC)} == {len(COLUMNS)}
