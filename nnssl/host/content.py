"""What a preprocessed case holds, as hashes that do not depend on how the arrays are cut and compressed on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from nnssl.host import CaseDataset

HASH_BYTES = 16


class CaseContent(NamedTuple):
    """Hashes of one preprocessed case.

    Attributes:
        image: hash of the voxels of the image.
        rest: hash of the label map and of the properties (spacing, cropping, places of the classes).
    """

    image: str
    rest: str


def content_of(image: Any, label_map: Any, properties: Mapping[str, Any]) -> CaseContent:  # noqa: ANN401
    """Return the content of a case, in the number types in which nnU-Net stores it.

    Args:
        image: (C, *S), any numbers.
        label_map: (1, *S), whole numbers.
        properties: what nnU-Net notes beside the arrays; order of keys does not count.
    """
    rest = hashlib.blake2b(digest_size=HASH_BYTES)
    _add(rest, np.asarray(label_map).astype(np.int16, copy=False))
    _add(rest, properties)
    voxels = hashlib.blake2b(digest_size=HASH_BYTES)
    _add(voxels, np.asarray(image).astype(np.float32, copy=False))
    return CaseContent(voxels.hexdigest(), rest.hexdigest())


def stored_content(case: str, dataset: CaseDataset) -> CaseContent | None:
    """Return the content of a preprocessed case on disk, None where its files cannot be read.

    Args:
        case: name of the case.
        dataset: nnU-Net's data set of the folder.
    """
    try:
        image, label_map, _, properties = dataset.load_case(case)
        return content_of(image[:], label_map[:], properties)
    except Exception:  # blosc2, numpy and pickle raise many types for a damaged file
        return None


def _add(digest: Any, value: Any) -> None:  # noqa: ANN401 - nested plain values and arrays
    """Feed a value into the digest; every part is preceded by its kind and length, so that parts cannot merge."""
    if isinstance(value, np.ndarray) and value.dtype != object:
        digest.update(f"array {value.dtype.str} {value.shape}".encode())
        digest.update(np.ascontiguousarray(value).data)
    elif isinstance(value, Mapping):
        digest.update(f"mapping {len(value)}".encode())
        for key in sorted(value, key=repr):
            _add(digest, key)
            _add(digest, value[key])
    elif isinstance(value, list | tuple | np.ndarray):
        digest.update(f"sequence {len(value)}".encode())
        for item in value:
            _add(digest, item)
    else:
        text = repr(value.item() if isinstance(value, np.generic) else value).encode()
        digest.update(f"value {len(text)} ".encode() + text)
