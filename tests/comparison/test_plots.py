from __future__ import annotations

import numpy as np
import pytest
from matplotlib import image

from nnssl.comparison.api import compare
from nnssl.comparison.plots import plot_comparison
from nnssl.errors import EnvironmentProblem
from tests.comparison.folders_for_tests import numbered, write_summary

BASE = np.linspace(0.5, 0.8, 8)


def result(root, count: int):
    places = [write_summary(root / f"method_{i}", numbered(BASE + 0.02 * i)) for i in range(count + 1)]
    return compare(places, baseline=places[0])


@pytest.mark.parametrize("count", [1, 4, 5])
def test_every_method_has_a_panel(count: int, tmp_path) -> None:
    files = [tmp_path / "out" / "a.png", tmp_path / "out" / "a.svg"]
    plot_comparison(result(tmp_path, count), files)
    height, width, _ = image.imread(files[0]).shape
    assert (width > 3 * height) == (count == 4)
    drawn = files[1].read_text()
    assert drawn.count('<g id="axes_') == count
    assert sorted(file.name for file in files[0].parent.iterdir()) == ["a.png", "a.svg"]


def test_better_values_are_blue_and_worse_ones_red(tmp_path) -> None:
    def pixels(name: str, baseline: str, method: str) -> np.ndarray:
        file = tmp_path / f"{name}.png"
        plot_comparison(compare([tmp_path / method], baseline=tmp_path / baseline), [file])
        return image.imread(file)[..., :3]

    result(tmp_path, 1)
    better, worse = pixels("b", "method_0", "method_1"), pixels("w", "method_1", "method_0")
    for picture, blue in ((better, True), (worse, False)):
        assert ((picture[..., 2] - picture[..., 0]) > 0.2).any() == blue
        assert ((picture[..., 0] - picture[..., 2]) > 0.2).any() != blue


def test_a_folder_in_the_way_is_named(tmp_path) -> None:
    (tmp_path / "a.png").mkdir()
    with pytest.raises(EnvironmentProblem):
        plot_comparison(result(tmp_path, 1), [tmp_path / "a.png"])
