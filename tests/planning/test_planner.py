import numpy as np
import pytest

from nnssl.data.domains import Setting
from nnssl.data.raw import read_raw_dataset
from nnssl.errors import UsageError
from nnssl.planning import planner
from nnssl.planning.api import plan
from nnssl.planning.manifest import preprocessing_settings
from nnssl.planning.planner import Sizing, cpu_patch
from nnssl.planning.plans import PlanRequest, make_plans
from nnssl.planning.scope import make_scope, settle_splits
from nnssl.registry import Method
from tests.planning.raw_for_tests import DATASET, read_json, write_json

HEAVY = Method("heavy", "HeavyTrainer", "", (), activations=3.0, students=2, teachers=1)


def planned(**options):
    result = plan(906, run_preprocessing=False, num_processes_fingerprint=1, **options)
    return result, read_json(result.plans_path)


def test_fingerprint_and_plans_of_the_supervised_trainer_are_stock_nnunets(data, stock):
    result, plans = planned(trainer="SupervisedTrainer")
    record = plans.pop("nnssl_semi")
    assert plans == read_json(stock / "nnUNetPlans.json")
    for file in ("dataset_fingerprint.json", "dataset.json"):
        assert read_json(data.preprocessed / file) == read_json(stock / file)
    assert (record["trainer"], record["divisor"], record["fixed_gb"]) == ("SupervisedTrainer", 1.0, 0.0)
    assert (record["gpu_memory_target_gb"], record["hardware"], record["labelled"]) == (8, None, None)
    assert result.plans_name == "nnUNetPlans"


def test_spacings_and_shapes_of_unlabelled_scans_stand_beside_the_fingerprint(data):
    planned()
    unlabelled = read_json(data.preprocessed / "dataset_fingerprint_unlabelled.json")["unlabelled"]
    assert unlabelled["un_0"]["shape"] == [19, 22, 20]
    assert unlabelled["un_0"]["spacing_mm"] == pytest.approx([1.2, 1.0, 1.0])
    assert list(unlabelled) == ["un_0", "un_1", "un_2"]


def test_facts_and_warnings_of_the_check_are_kept(data):
    result, _ = planned()
    check = read_json(data.preprocessed / "data_check.json")
    assert check["warnings"] == list(result.warnings)
    kinds = {case: scan["kind"] for case, scan in check["scans"].items()}
    assert kinds["un_0"] == "unlabelled"
    assert kinds["case_0"] == "labelled"
    assert check["scans"]["un_0"]["shape"] == [19, 22, 20]
    assert check["scans"]["un_0"]["spacing_mm"] == pytest.approx([1.2, 1.0, 1.0])
    planned(labelled=2, fold=1)
    (tagged,) = data.preprocessed.glob("data_check@*.json")
    counted = [scan["kind"] for scan in read_json(tagged)["scans"].values()].count("labelled")
    assert counted == 2


def test_the_fingerprint_is_kept_until_a_labelled_file_changes(data, monkeypatch):
    planned()
    monkeypatch.setattr("nnssl.planning.fingerprint._extract", lambda *_: pytest.fail("made anew"))
    planned()
    (data.raw / "labelsTr/case_0.nii.gz").write_bytes((data.raw / "labelsTr/case_3.nii.gz").read_bytes())
    with pytest.raises(BaseException, match="made anew"):
        planned()
    with pytest.raises(BaseException, match="made anew"):
        planned(clean=True)


def weights_of(plans, configuration):
    import torch
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    architecture = plans["configurations"][configuration]["architecture"]
    network = get_network_from_plans(*list(architecture.values()), 1, 3, deep_supervision=False)
    assert isinstance(network, torch.nn.Module)
    return sum(p.numel() for p in network.parameters())


def test_memory_of_further_networks_is_taken_off_the_target(data, monkeypatch):
    monkeypatch.setitem(planner.METHODS, HEAVY.class_name, HEAVY)
    _, heavy = planned(trainer="HeavyTrainer", gpu_memory_target_gb=4)
    _, light = planned(trainer="SupervisedTrainer", gpu_memory_target_gb=4)
    record = heavy["nnssl_semi"]
    expected = max(weights_of(heavy, name) for name in ("2d", "3d_fullres")) * 24 / 1e9
    assert record["fixed_gb"] == pytest.approx(expected, rel=0.05, abs=0.001)
    assert record["divisor"] == 3.0
    for name in ("2d", "3d_fullres"):
        less, more = (plans["configurations"][name] for plans in (heavy, light))
        assert np.prod(less["patch_size"]) <= np.prod(more["patch_size"])
    for name in set(planner.METHODS) - {"SupervisedTrainer", "HeavyTrainer"}:
        monkeypatch.delitem(planner.METHODS, name)
    assert planned()[1]["nnssl_semi"]["trainer"] == "HeavyTrainer"


def plans_of_large_images(data, request):
    raw = read_raw_dataset(906)
    scope = make_scope(raw, data.preprocessed, settle_splits(raw, data.preprocessed)[0], 0, None)
    fingerprint = {
        "spacings": [[1.0, 0.77, 0.77]] * 20,
        "shapes_after_crop": [[432, 512, 512]] * 20,
        "foreground_intensity_properties_per_channel": {"0": {}},
        "median_relative_size_after_cropping": 1.0,
    }
    return make_plans(scope, request, fingerprint)


@pytest.mark.parametrize(
    ("trainer", "target", "patch"),
    [
        ("SupervisedTrainer", None, [128, 128, 128]),
        ("MeanTeacherTrainer", None, [96, 112, 112]),
        ("HeavyTrainer", 8, [80, 96, 96]),
    ],
)
def test_a_large_image_gets_the_patch_that_the_memory_allows(data, monkeypatch, trainer, target, patch):
    monkeypatch.setitem(planner.METHODS, HEAVY.class_name, HEAVY)
    plans = plans_of_large_images(data, PlanRequest(trainer=trainer, gpu_memory_target_gb=target))
    assert plans["configurations"]["3d_fullres"]["patch_size"] == patch
    assert "3d_lowres" in plans["configurations"]


def test_every_trainer_fits_the_plan_that_names_none(data):
    common = plans_of_large_images(data, PlanRequest())["configurations"]
    for name in planner.METHODS:
        own = plans_of_large_images(data, PlanRequest(trainer=name))["configurations"]
        for configuration in ("2d", "3d_fullres", "3d_lowres"):
            voxels = [
                np.prod(plan[configuration]["patch_size"]) * plan[configuration]["batch_size"] for plan in (own, common)
            ]
            assert voxels[0] >= voxels[1]


def test_sizing_counts_what_the_method_holds_beyond_one_network():
    assert Sizing.of(HEAVY) == Sizing("HeavyTrainer", 3.0, 24)
    assert Sizing.of(HEAVY).fixed_gb(31_000_000) == pytest.approx(0.744)
    assert [sizing.extra_bytes for sizing in Sizing.for_trainer("SupervisedTrainer")] == [0]
    assert len(Sizing.for_trainer(None)) == len(planner.METHODS)


def test_too_little_memory_is_an_error_before_anything_is_written(data):
    with pytest.raises(UsageError, match="too little") as caught:
        planned(trainer="MeanTeacherTrainer", gpu_memory_target_gb=0.2)
    assert "-hardware cpu" in caught.value.run
    assert not (data.preprocessed / "nnUNetPlans.json").exists()


@pytest.mark.parametrize(
    ("spacing", "median", "patch"),
    [
        ((1, 1, 1), (36, 50, 35), (40, 56, 40)),
        ((1, 1, 1), (33, 50, 36.5), (40, 56, 40)),
        ((1.5, 1.5), (256, 216), (192, 160)),
        ((1.5, 1.5), (256, 248), (192, 160)),
        ((0.625, 0.625, 0.625), (190, 140, 88), (64, 48, 32)),
        ((1, 1, 1), (7, 7, 7), (7, 7, 7)),
        ((1, 1), (3, 2000), (3, 2048)),
    ],
)
def test_cpu_patch(spacing, median, patch):
    assert cpu_patch(spacing, median) == patch


@pytest.mark.parametrize("seed", range(20))
def test_cpu_patches_stay_near_their_limit_and_fit_their_network(seed):
    from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props

    rng = np.random.default_rng(seed)
    dim = 2 + seed % 2
    spacing, median = rng.uniform(0.5, 3, dim), rng.integers(20, 600, dim)
    patch = cpu_patch(spacing, median)
    assert tuple(get_pool_and_conv_props(spacing, patch, 4, 999)[3]) == patch
    assert np.prod(patch) <= 1.6 * {2: 30_720, 3: 96_000}[dim]


def test_the_cpu_plan_is_small_and_fixed(data, monkeypatch):
    write_json(data.raw / "splits_final.json", [{"train": [f"case_{n}" for n in range(5)], "val": ["case_5"]}])
    result, plans = planned(hardware="cpu", labelled=2)
    monkeypatch.setitem(planner.METHODS, HEAVY.class_name, HEAVY)
    assert planned(hardware="cpu", labelled=2)[1] == plans
    assert sorted(plans["configurations"]) == ["2d", "3d_fullres"]
    full, flat = plans["configurations"]["3d_fullres"], plans["configurations"]["2d"]
    assert (full["patch_size"], full["batch_size"], flat["patch_size"], flat["batch_size"]) == (
        [20, 24, 20],
        2,
        [24, 20],
        4,
    )
    assert full["architecture"]["arch_kwargs"]["features_per_stage"] == [16, 32, 64]
    assert full["median_image_size_in_voxels"] != full["patch_size"]
    assert plans["experiment_planner_used"] == "ExperimentPlanner"
    assert plans["nnssl_semi"]["hardware"] == "cpu"
    assert result.plans_name == "nnUNetPlans@lab2"


def test_the_old_spelling_of_the_hardware_option_gives_the_same_plans(data):
    result, plans = planned(hardware="cpu")
    assert planned(budget="cpu")[1] == plans
    assert plans["nnssl_semi"]["command"].endswith(" -hardware cpu")
    assert result.plans_name == "nnUNetPlans"


def test_planning_again_keeps_added_configurations_and_drops_old_ones_of_nnunet(data):
    _, plans = planned()
    plans["configurations"] |= {"mine": {"inherits_from": "2d"}, "3d_lowres": {"data_identifier": "old"}}
    write_json(data.preprocessed / "nnUNetPlans.json", plans)
    _, again = planned(hardware="cpu")
    assert sorted(again["configurations"]) == ["2d", "3d_fullres", "mine"]


def test_other_planners_and_names(data):
    result, plans = planned(planner="nnUNetPlannerResEncM", labelled=3)
    assert result.plans_name == "nnUNetResEncUNetMPlans@lab3"
    assert plans["experiment_planner_used"] == "nnUNetPlannerResEncM"
    assert plans["configurations"]["2d"]["data_identifier"] == "nnUNetPlans@lab3_2d"
    result, plans = planned(plans_name="Mine", target_spacing_mm=(2, 1, 1))
    assert plans["configurations"]["3d_fullres"]["data_identifier"] == "Mine_3d_fullres"
    assert plans["configurations"]["3d_fullres"]["spacing"] == [2.0, 1.0, 1.0]
    assert plans["nnssl_semi"]["command"].endswith(
        f"-d {DATASET} -overwrite_target_spacing 2 1 1 -overwrite_plans_name Mine"
    )
    assert result.next_commands[0] == f"nnssl_train {DATASET} 2d 0 -p Mine"


def test_a_budgets_fingerprint_and_plans_leave_the_untagged_files_alone(data):
    planned()
    before = {path.name: path.read_bytes() for path in data.preprocessed.iterdir()}
    result, plans = planned(labelled=2, fold=1)
    assert {name: (data.preprocessed / name).read_bytes() for name in before} == before
    fingerprint = read_json(data.preprocessed / f"dataset_fingerprint{result.plans_name[11:]}.json")
    assert len(fingerprint["spacings"]) == 2
    assert (
        plans["foreground_intensity_properties_per_channel"]
        == fingerprint["foreground_intensity_properties_per_channel"]
    )
    assert set(plans["nnssl_semi"]["labelled_cases"]) == set(result.cases.labelled)
    assert plans["nnssl_semi"]["fold"] == 1


@pytest.mark.parametrize(
    "options",
    [
        {"trainer": "NoTrainer"},
        {"hardware": "gpu"},
        {"hardware": "cpu", "gpu_memory_target_gb": 4.0},
        {"hardware": "cpu", "planner": "nnUNetPlannerResEncL"},
        {"gpu_memory_target_gb": -1.0},
        {"gpu_memory_target_gb": float("nan")},
        {"target_spacing_mm": (1.0, 1.0)},
        {"target_spacing_mm": (1.0, 0.0, 1.0)},
        {"plans_name": "a@lab7"},
        {"plans_name": "../a"},
        {"plans_name": ""},
    ],
)
def test_wrong_requests(options):
    with pytest.raises(UsageError):
        PlanRequest(**options)


@pytest.mark.parametrize(
    "options", [{"planner": "NoPlanner"}, {"preprocessor": "NoSuch"}, {"fingerprint_extractor": "No"}]
)
def test_unknown_classes_of_nnunet(data, options):
    with pytest.raises(UsageError, match="No"):
        planned(**options)


def test_the_shared_normalisation_does_not_depend_on_the_channel_names(data):
    description = read_json(data.raw / "dataset.json")
    write_json(data.raw / "dataset.json", {**description, "channel_names": {"0": "CT"}})
    _, stock = planned(hardware="cpu")
    _, shared = planned(hardware="cpu", normalisation="shared", plans_name="Shared")
    for name, configuration in shared["configurations"].items():
        theirs = stock["configurations"][name]
        assert theirs["normalization_schemes"] == ["CTNormalization"]
        assert "nnssl_clip_percentiles" not in theirs
        assert configuration["normalization_schemes"] == ["ZScoreNormalization"]
        assert configuration["use_mask_for_norm"] == [False]
        assert configuration["nnssl_clip_percentiles"] == [0.5, 99.5]
        assert configuration["patch_size"] == theirs["patch_size"]
    assert "-normalisation shared" in shared["nnssl_semi"]["command"]


def test_a_setting_takes_the_shared_normalisation_unless_told_otherwise():
    setting = Setting.parse("mdg:A")
    assert PlanRequest(setting=setting).shared_normalisation
    assert not PlanRequest(setting=setting, normalisation="nnunet").shared_normalisation
    assert not PlanRequest().shared_normalisation
    assert PlanRequest(setting=setting).command("D") == "nnssl_plan_and_preprocess -d D -setting mdg:A"
    with pytest.raises(UsageError, match="unknown normalisation 'share'"):
        PlanRequest(normalisation="share")


def test_clipped_and_other_data_are_never_mistaken_for_each_other(data):
    _, plans = planned(hardware="cpu", normalisation="shared")
    clipped = preprocessing_settings(plans, "3d_fullres", {})
    del plans["configurations"]["3d_fullres"]["nnssl_clip_percentiles"]
    plain = preprocessing_settings(plans, "3d_fullres", {})
    assert {name for name in clipped if clipped[name] != plain.get(name)} == {"nnssl_clip_percentiles"}
    assert "nnssl_clip_percentiles" not in plain  # so that data of earlier versions stay valid
