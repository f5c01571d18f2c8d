"""The one table of hints for files that cannot be read: cause -> what a user should do.

The converters, the check of a raw data set, the prediction and the evaluation all use this table, so that one cause
gets one piece of advice. The table advises to copy a file again only where the file is damaged.
"""

from __future__ import annotations

from dataclasses import dataclass

COPY_AGAIN = "copy the file again from its source"
RIGHT_ANGLES = "resample the image to axes at right angles, or repair the header"
SHEARED = "the axes of the image are not at right angles"


@dataclass(frozen=True)
class ReadProblem:
    """Why a file cannot be read, and what to do about it.

    Attributes:
        cause: the cause, in a form that fits between brackets.
        hint: what a user should do first.
    """

    cause: str
    hint: str

    def __str__(self) -> str:
        return f"cannot be read ({self.cause}): {self.hint}"


@dataclass(frozen=True)
class _Row:
    """One row of the table: a text in the message of the error, the cause in plain words, and the hint.

    An empty cause keeps the last line of the message, which then tells more than the table can.
    """

    text: str
    cause: str
    hint: str


TABLE = (
    _Row("orthonormal direction", SHEARED, RIGHT_ANGLES),
    _Row("determinant is", "the axes of the image do not span a volume", "repair the direction in the header"),
    _Row("spacing is not supported", "a voxel size in the header is not positive", "correct the voxel size"),
    _Row("end too early", "", COPY_AGAIN),
    _Row("end-of-stream", "the compressed data end too early", COPY_AGAIN),
    _Row("fread got only", "the data end too early", COPY_AGAIN),
    _Row("could the file be damaged", "the data end too early", COPY_AGAIN),
    _Row("file cannot be read:", "the voxels cannot be read completely", COPY_AGAIN),
    _Row("permission denied", "the permission to read the file is missing", "give yourself the permission to read it"),
    _Row("is not compressed", "", "remove .gz from the name, or compress the file with gzip"),
    _Row("name does not end in .gz", "", "add .gz to the name"),
    _Row(
        "unable to determine imageio",
        "the content is no image of the type that the file name promises",
        f"give the file the ending of its type, or {COPY_AGAIN}",
    ),
    _Row("unknown pixeltype", "the pixel type is unusual", "save the picture in grey or colour, without transparency"),
    _Row("unable to allocate", "", "let fewer processes read at a time (-np), or free memory"),
)


def explain_read_error(error: BaseException) -> ReadProblem:
    """Return the cause and the hint for an error that a reader of images raised.

    An error that the table does not know keeps the last line of its message, in which the readers name the cause.
    """
    message = str(error).strip()
    last = (message.splitlines() or [type(error).__name__])[-1].strip()
    if isinstance(error, MemoryError):
        message = f"unable to allocate: {message}"
    for row in TABLE:
        if row.text in message.lower():
            return ReadProblem(row.cause or last, row.hint)
    return ReadProblem(last, f"open the file in a viewer for images; if the viewer fails as well, {COPY_AGAIN}")
