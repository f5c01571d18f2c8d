from __future__ import annotations

import copy

import pytest

from nnssl.bundles.trust import KNOWN, NORMALISATIONS, RESAMPLING, problems_of_description, problems_of_plans
from nnssl.host import find_preprocessor, readers
from nnssl.networks import plans_entry
from tests.conftest import LABELS, tiny_plans

GOOD = tiny_plans(3, [16, 16, 16])
ARCHITECTURE = ("configurations", "3d_fullres", "architecture")
CONFIGURATION = ("configurations", "3d_fullres")


def changed(place: tuple[str, ...], key: str, value: object) -> dict:
    plans = copy.deepcopy(GOOD)
    part = plans
    for name in place:
        part = part[name]
    part[key] = value
    return plans


def test_plans_of_nnunet_are_safe() -> None:
    assert problems_of_plans(GOOD) == []


@pytest.mark.parametrize("name", ["vnet", "unet_bcp", "resnet34_vnet"])
def test_networks_of_nnssl_are_safe(name) -> None:
    plans = copy.deepcopy(GOOD)
    plans["configurations"]["3d_fullres"]["architecture"] = plans_entry(name, plans["configurations"]["3d_fullres"])
    assert problems_of_plans(plans) == []


@pytest.mark.parametrize(
    ("place", "key", "value"),
    [
        (ARCHITECTURE, "network_class_name", "subprocess.Popen"),
        (ARCHITECTURE, "network_class_name", "os.system"),
        (ARCHITECTURE, "network_class_name", "nnssl.networks.vnet.pydoc.locate"),
        (ARCHITECTURE, "network_class_name", "dynamic_network_architectures.architectures.unet.torch.load"),
        (ARCHITECTURE, "network_class_name", None),
        ((*ARCHITECTURE, "arch_kwargs"), "conv_op", "os.system"),
        ((*ARCHITECTURE, "arch_kwargs"), "conv_op", "torch.nn.Module.load"),
        (ARCHITECTURE, "_kw_requires_import", "conv_op"),
        (ARCHITECTURE, "arch_kwargs", []),
        (("configurations",), "hidden", {"a": [{"network_class_name": "os.system"}]}),
        (CONFIGURATION, "preprocessor_name", "load_pickle"),
        (CONFIGURATION, "resampling_fn_data", "partial"),
        (CONFIGURATION, "resampling_fn_probabilities", ["resample_data_or_seg_to_shape"]),
        (CONFIGURATION, "normalization_schemes", ["os"]),
        (CONFIGURATION, "normalization_schemes", [{}]),
        (CONFIGURATION, "normalization_schemes", "ZScoreNormalization"),
        ((), "image_reader_writer", "join"),
        ((), "label_manager", "Evil"),
        ((), "configurations", []),
    ],
)
def test_everything_else_is_a_problem(place, key, value) -> None:
    assert problems_of_plans(changed(place, key, value)) != []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"overwrite_image_reader_writer": "os"}, "reader"),
        ({"overwrite_image_reader_writer": []}, "reader"),
        ({"file_ending": "/../x"}, "file_ending"),
        ({"file_ending": None}, "file_ending"),
        ({"labels": []}, "labels"),
    ],
)
def test_descriptions_are_checked(change, words) -> None:
    good = {"labels": LABELS, "file_ending": ".nii.gz", "channel_names": {"0": "MRI"}}
    assert problems_of_description(good) == []
    (problem,) = problems_of_description(good | change)
    assert words in problem


def test_the_known_names_are_those_of_the_installed_nnunet() -> None:
    from nnunetv2.preprocessing.normalization import default_normalization_schemes as schemes
    from nnunetv2.preprocessing.resampling.utils import recursive_find_resampling_fn_by_name

    assert {reader.__name__ for reader in readers()} == KNOWN["image_reader_writer"]
    classes = vars(schemes).values()
    found = {
        each.__name__ for each in classes if isinstance(each, type) and issubclass(each, schemes.ImageNormalization)
    }
    assert found - {"ImageNormalization"} == NORMALISATIONS
    assert all(callable(recursive_find_resampling_fn_by_name(name)) for name in RESAMPLING)
    assert find_preprocessor("DefaultPreprocessor").__name__ in KNOWN["preprocessor_name"]
