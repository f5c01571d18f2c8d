from __future__ import annotations

import resource
from contextlib import contextmanager

import numpy as np
import pytest
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnssl.errors import EnvironmentProblem
from nnssl.inference.export import write_mask, write_probabilities

PROPERTIES = {"sitk_stuff": {"spacing": (1.0, 1.0, 2.0), "origin": (0.0,) * 3, "direction": tuple(np.eye(3).ravel())}}


@contextmanager
def small_files():
    """No file of this process may grow beyond 20 kB, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        yield
    finally:  # without delay: pytest itself writes to a file that may be larger
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def noise(shape=(40, 50, 60)):
    return np.random.default_rng(0).integers(0, 200, shape, dtype=np.uint8)


def test_mask_on_disk(tmp_path):
    path = tmp_path / "new" / "a.nii.gz"
    write_mask(path, noise(), PROPERTIES, SimpleITKIO())
    assert (SimpleITKIO().read_seg(str(path))[0][0] == noise()).all()
    assert [file.name for file in path.parent.iterdir()] == ["a.nii.gz"]


def test_full_disk_leaves_the_old_mask(tmp_path):
    path = tmp_path / "a.nii.gz"
    path.write_text("old")
    with pytest.raises(EnvironmentProblem, match="could not be written") as caught, small_files():
        write_mask(path, noise(), PROPERTIES, SimpleITKIO())
    assert caught.value.where == str(path)
    assert [file.name for file in tmp_path.iterdir()] == ["a.nii.gz"]
    assert path.read_text() == "old"


def test_full_disk_leaves_no_probabilities(tmp_path):
    with pytest.raises(EnvironmentProblem, match="could not be written"), small_files():
        write_probabilities(tmp_path / "a", np.random.default_rng(0).random((3, 20, 20, 20)), {})
    assert not list(tmp_path.iterdir())


def test_writer_that_loses_voxels_is_noticed(tmp_path):
    class Lossy(SimpleITKIO):
        def write_seg(self, seg, output_fname, properties):
            super().write_seg(np.minimum(seg, 7), output_fname, properties)

    with pytest.raises(EnvironmentProblem, match="could not be written") as caught:
        write_mask(tmp_path / "a.nii.gz", noise(), PROPERTIES, Lossy())
    assert "differs" in caught.value.why
    assert not list(tmp_path.iterdir())


def test_interruption_leaves_nothing(tmp_path):
    class Interrupted(SimpleITKIO):
        def write_seg(self, seg, output_fname, properties):
            super().write_seg(seg, output_fname, properties)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_mask(tmp_path / "a.nii.gz", noise(), PROPERTIES, Interrupted())
    assert not list(tmp_path.iterdir())
