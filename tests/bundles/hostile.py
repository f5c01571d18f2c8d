"""Archives that no one should install: each function changes the entries of a good archive."""

from __future__ import annotations

import os
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

Entries = list[tuple[zipfile.ZipInfo, bytes]]


def read(file: Path) -> Entries:
    with zipfile.ZipFile(file) as archive:
        return [(info, archive.read(info)) for info in archive.infolist()]


def write(file: Path, entries: Entries) -> Path:
    with zipfile.ZipFile(file, "w") as archive:
        for info, content in entries:
            fresh = zipfile.ZipInfo(info.filename)
            fresh.external_attr, fresh.compress_type = info.external_attr, info.compress_type
            archive.writestr(fresh, content)
    return file


def entry(name: str, mode: int = stat.S_IFREG | 0o644, compression: int = zipfile.ZIP_STORED) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr, info.compress_type = mode << 16, compression
    return info


def adding(name: str, content: bytes = b"x", **options: int) -> Callable[[Entries], Entries]:
    return lambda entries: [*entries, (entry(name, **options), content)]


class Evil:
    """Pickle that writes a file when it is loaded."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.place),)


# name of the test -> change of the entries, words of the message
HOSTILE: dict[str, tuple[Callable[[Entries], Entries], str]] = {
    "parent": (adding("../evil.json"), "unsafe path"),
    "parent inside": (adding("fold_0/../../../evil.json"), "unsafe path"),
    "absolute": (adding("/tmp/evil.json"), "unsafe path"),
    "drive": (adding("C:/evil.json"), "unsafe path"),
    "backslash": (adding("..\\evil.json"), "unsafe path"),
    "control": (adding("a\x1b[2J.json"), "unsafe path"),
    "link": (adding("link.json", b"/etc/passwd", mode=stat.S_IFLNK | 0o777), "a link"),
    "device": (adding("pipe.json", mode=stat.S_IFIFO | 0o644), "a link or a special file"),
    "bomb": (adding("big.json", bytes(64 << 20), compression=zipfile.ZIP_DEFLATED), "unpacks from"),
    "rare compression": (adding("a.json", b"x" * 99, compression=zipfile.ZIP_LZMA), "compressed in an unusual way"),
    "many": (lambda entries: [*entries, *((entry(f"a{i}.json"), b"x") for i in range(10_000))], "entries"),
    "twice": (lambda entries: [*entries, entries[0]], "appears twice"),
    "case": (
        lambda entries: [*entries, (entry(entries[0][0].filename.upper()), b"{}")],
        "by upper and lower case only",
    ),
    "case of a folder": (
        lambda entries: [*entries, (entry("part/x.json"), b"{}"), (entry("Part/y.json"), b"{}")],
        "by upper and lower case only",
    ),
    "two forms of a letter": (
        lambda entries: [*entries, (entry("\u00e9.json"), b"{}"), (entry("e\u0301.json"), b"{}")],
        "by upper and lower case only",
    ),
    "file and folder": (
        lambda entries: [*entries, (entry("x.json"), b"{}"), (entry("x.json/y.json"), b"{}")],
        "is a file and a folder",
    ),
    "pickle": (adding("evil.pkl", b"cos\nsystem\n(S'true'\ntR."), "evil.pkl"),
    "code": (adding("trainer.py", b"raise SystemExit"), "trainer.py"),
}
