from __future__ import annotations

import hashlib
import json
import zipfile

import pytest

from nnssl.bundles import archive as module
from nnssl.bundles.archive import open_archive, texts_in
from nnssl.errors import DataError, UsageError
from tests.bundles.hostile import HOSTILE, adding, entry, read, write

pytestmark = pytest.mark.filterwarnings("ignore:Duplicate name")
OF_THE_READER = ("pickle", "code")  # their names are refused by those who know what a bundle holds


@pytest.fixture
def good(tmp_path):
    return write(tmp_path / "good.zip", [(entry("a.json"), b'{"a": 1}'), (entry("part/b"), b"bytes")])


def test_a_good_archive_gives_names_sizes_and_content(good, tmp_path) -> None:
    with open_archive(good) as archive:
        assert archive.names == ["a.json", "part/b"]
        assert archive.size("part/b") == 5
        assert archive.read_object("a.json", ("a",)) == {"a": 1}
        assert archive.unpack("part/b", tmp_path / "b") == hashlib.sha256(b"bytes").hexdigest()
    assert (tmp_path / "b").read_bytes() == b"bytes"


@pytest.mark.parametrize("kind", [name for name in HOSTILE if name not in OF_THE_READER])
def test_a_hostile_archive_is_refused_before_anything_is_unpacked(kind, good, tmp_path) -> None:
    change, words = HOSTILE[kind]
    bad = write(tmp_path / "bad.zip", change(read(good)))
    with pytest.raises(DataError, match="nothing was installed") as error, open_archive(bad):
        pass
    assert words in error.value.why
    assert error.value.why.isprintable()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.zip", "good.zip"]


@pytest.mark.parametrize("kept", [0, 10, 60, -30])
def test_a_truncated_archive_is_refused(kept, good) -> None:
    good.write_bytes(good.read_bytes()[:kept])
    with pytest.raises(DataError, match="refused") as error, open_archive(good):
        pass
    assert "truncated" in error.value.why


def test_damaged_bytes_are_found_by_their_checksum(good, tmp_path) -> None:
    content = good.read_bytes()
    good.write_bytes(content.replace(b"bytes", b"bytez", 1))
    with open_archive(good) as archive, pytest.raises(DataError, match="refused") as error:
        archive.unpack("part/b", tmp_path / "b")
    assert "part/b is damaged" in error.value.why


def test_overlapping_entries_are_refused(tmp_path) -> None:
    """Both names of the directory lead to the same bytes, so that together they are larger than the file."""
    block = bytes(range(256)) * 40
    bad = write(tmp_path / "bad.zip", [(entry(name), block) for name in ("a", "b")])
    content = bad.read_bytes()
    start = content.index(b"PK\x01\x02")
    first = content.index(b"PK\x03\x04", 10)
    packed = content[:first] + content[start:]
    directory = bytearray(packed)
    second = directory.index(b"PK\x01\x02", directory.index(b"PK\x01\x02") + 4)
    directory[second + 42 : second + 46] = (0).to_bytes(4, "little")
    end = directory.index(b"PK\x05\x06")
    directory[end + 16 : end + 20] = first.to_bytes(4, "little")
    bad.write_bytes(bytes(directory))
    assert zipfile.is_zipfile(bad)
    with pytest.raises(DataError, match="refused") as error, open_archive(bad):
        pass
    assert "overlap" in error.value.why


def test_the_whole_size_is_limited(good, monkeypatch) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 12)
    with pytest.raises(DataError, match="refused") as error, open_archive(good):
        pass
    assert "it unpacks to 13 bytes; at most 12" in error.value.why


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[1]", "not a JSON object"),
        (b'{"b": 1}', "not a JSON object with a"),
        (json.dumps({"a": {"deep": ["\x1b[31m"]}}).encode(), "control characters"),
    ],
)
def test_json_that_is_wrong_is_refused(content, words, tmp_path) -> None:
    with (
        open_archive(write(tmp_path / "bad.zip", adding("a.json", content)([]))) as archive,
        pytest.raises(DataError, match="refused") as error,
    ):
        archive.read_object("a.json", ("a",))
    assert words in error.value.why


def test_large_texts_are_not_read(good, monkeypatch) -> None:
    monkeypatch.setattr(module, "MOST_TEXT_BYTES", 4)
    with open_archive(good) as archive, pytest.raises(DataError, match="refused") as error:
        archive.read("part/b")
    assert "5 bytes; at most 4" in error.value.why


def test_a_missing_file_is_a_wrong_argument(tmp_path) -> None:
    with pytest.raises(UsageError, match="no such bundle"), open_archive(tmp_path / "none.zip"):
        pass


def test_all_texts_of_nested_values_are_found() -> None:
    assert sorted(texts_in({"a": ["b", {"c": "d"}], "e": 1})) == ["a", "b", "c", "d", "e"]
