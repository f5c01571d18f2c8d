from __future__ import annotations

import pytest

from nnssl.annotation.history import HISTORY_JSON, read_history, with_round
from nnssl.errors import DataError
from nnssl.system.files import write_json


def test_rounds_are_counted(tmp_path) -> None:
    assert read_history(tmp_path) == []
    write_json(tmp_path / HISTORY_JSON, with_round([], ["b", "a"], "random"))
    write_json(tmp_path / HISTORY_JSON, with_round(read_history(tmp_path), ["c"], "entropy"))
    assert read_history(tmp_path) == [
        {"cases": ["a", "b"], "strategy": "random"},
        {"cases": ["c"], "strategy": "entropy"},
    ]
    (tmp_path / HISTORY_JSON).write_text("{")
    with pytest.raises(DataError):
        read_history(tmp_path)
    (tmp_path / HISTORY_JSON).write_text('{"a": 1}')
    assert read_history(tmp_path) == []
