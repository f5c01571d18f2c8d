from __future__ import annotations

import json
import shutil
import zipfile

import pytest

from nnssl.errors import DataError, EnvironmentProblem, UsageError
from nnssl.inference.models import ModelFolder, ModelQuery, find_folds, find_model, find_named, list_models


def make_folder(results, dataset="Dataset001_A", trainer="T", plans="P", configuration="2d", checkpoints=("0/final",)):
    folder = results / dataset / f"{trainer}__{plans}__{configuration}"
    for checkpoint in checkpoints:
        fold, kind = checkpoint.split("/")
        (folder / f"fold_{fold}").mkdir(parents=True, exist_ok=True)
        (folder / f"fold_{fold}" / f"checkpoint_{kind}.pth").touch()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plans.json").write_text("{}")
    (folder / "dataset.json").write_text("{}")
    return folder


def test_only_folders_with_a_checkpoint_are_models(results):
    made = make_folder(results)
    make_folder(results, configuration="3d_fullres", checkpoints=())
    (results / "Dataset001_A" / "other__x").mkdir()
    assert list_models() == [ModelFolder(made, "Dataset001_A", "T", "P", "2d")]


def test_the_only_trained_model_is_taken_even_beside_an_unfinished_one(results):
    made = make_folder(results)
    make_folder(results, trainer="U", checkpoints=("0/latest",))
    assert find_model(ModelQuery()).path == made


def test_several_models_are_listed_with_the_options_that_select_each(results):
    make_folder(results)
    make_folder(results, trainer="U", checkpoints=("0/final", "3/final"))
    with pytest.raises(UsageError) as caught:
        find_model(ModelQuery())
    assert "-d Dataset001_A -tr T -p P -c 2d" in caught.value.why
    assert "-d Dataset001_A -tr U -p P -c 2d -tag default   (folds 0 3)" in caught.value.why


def test_tags_tell_runs_of_one_method_apart(results):
    plain = make_folder(results)
    tagged = make_folder(results, configuration="2d@seed1")
    with pytest.raises(UsageError) as caught:
        find_model(ModelQuery())
    assert "-c 2d -tag default   (folds 0)" in caught.value.why
    assert "-c 2d -tag seed1   (folds 0)" in caught.value.why
    assert find_model(ModelQuery(tag="seed1")).path == tagged
    assert find_model(ModelQuery(tag="default")).path == plain
    assert find_model(ModelQuery(folder=tagged)).tag == "seed1"


@pytest.mark.parametrize(
    ("query", "chosen"),
    [
        (ModelQuery(dataset=2), "Dataset002_B/T__P__2d"),
        (ModelQuery(dataset="002"), "Dataset002_B/T__P__2d"),
        (ModelQuery(dataset="Dataset002_B"), "Dataset002_B/T__P__2d"),
        (ModelQuery(trainer="U"), "Dataset001_A/U__P__2d"),
        (ModelQuery(plans="Q"), "Dataset001_A/T__Q__2d"),
        (ModelQuery(configuration="3d"), "Dataset001_A/T__P__3d"),
        (ModelQuery(dataset="1", trainer="T", plans="P", configuration="2d"), "Dataset001_A/T__P__2d"),
    ],
)
def test_names_narrow_the_choice_down(results, query, chosen):
    make_folder(results)
    for change in ({"dataset": "Dataset002_B"}, {"trainer": "U"}, {"plans": "Q"}, {"configuration": "3d"}):
        make_folder(results, **change)
    assert find_model(query).path == results / chosen


def test_options_of_a_listed_model_select_it(results):
    for configuration in ("2d", "3d", "3d@seed1"):
        make_folder(results, configuration=configuration)
    for model in list_models():
        words = model.options.split()
        names = dict(zip(("dataset", "trainer", "plans", "configuration", "tag"), words[1::2], strict=True))
        assert find_model(ModelQuery(**names)) == model


def test_no_model_fits(results):
    make_folder(results)
    with pytest.raises(UsageError, match="no trained model fits") as caught:
        find_model(ModelQuery(dataset=7))
    assert "Dataset001_A" in caught.value.why


def test_a_bundle_is_installed_first(tmp_path):
    with zipfile.ZipFile(tmp_path / "model.zip", "w") as bundle:
        bundle.writestr("plans.json", "{}")
    with pytest.raises(DataError, match="a file, not a model folder") as caught:
        find_model(ModelQuery(folder=tmp_path / "model.zip"))
    assert caught.value.run == f"nnssl_install {tmp_path / 'model.zip'}"


def test_no_model_at_all(results):
    with pytest.raises(UsageError, match="there is no trained model"):
        find_model(ModelQuery())


def test_results_variable_not_set(monkeypatch):
    monkeypatch.delenv("nnUNet_results", raising=False)
    with pytest.raises(EnvironmentProblem, match="nnUNet_results"):
        find_model(ModelQuery())


def test_unfinished_training_says_how_to_go_on(results):
    make_folder(results, checkpoints=("2/best", "2/latest"))
    with pytest.raises(UsageError, match="has not ended") as caught:
        find_model(ModelQuery())
    assert "nnssl_train Dataset001_A 2d 2 -tr T -p P -tag default --c" in caught.value.run
    assert "-chk checkpoint_best.pth" in caught.value.run
    assert find_model(ModelQuery(checkpoint="checkpoint_best.pth")).trainer == "T"


@pytest.mark.parametrize(
    ("plans", "setting", "options"),
    [
        ("P@lab10pct-fold2", None, "-p P -labelled 10%"),
        ("P@mdg-D@lab2pct", "mdg:D", "-p P -setting mdg:D -labelled 2%"),
        ("P@umda-A-B", "umda:A:B", "-p P -setting umda:A:B"),
        ("P@mnms_to_a-5@lab5", "mnms_to_a-5", "-p P -protocol mnms_to_a-5"),
    ],
)
def test_unfinished_training_with_a_budget_or_setting_says_how_to_go_on(results, plans, setting, options):
    folder = make_folder(results, plans=plans, checkpoints=("2/latest",))
    if setting:
        (folder / "plans.json").write_text(json.dumps({"nnssl_semi": {"setting": setting}}))
    with pytest.raises(UsageError) as caught:
        find_model(ModelQuery())
    assert f"-tr T {options} -tag default --c" in caught.value.run


def test_model_folder_given_directly(results, tmp_path):
    made = make_folder(results)
    assert find_model(ModelQuery(folder=made)).options == "-d Dataset001_A -tr T -p P -c 2d -tag default"
    elsewhere = tmp_path / "shared"
    shutil.copytree(made, elsewhere)
    assert find_model(ModelQuery(folder=elsewhere)).options == f"-m {elsewhere}"


def test_a_relative_folder_below_the_results_is_found_from_everywhere(results, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    model = make_folder(results)
    relative = model.relative_to(results)
    assert find_model(ModelQuery(folder=relative)).path == model
    (tmp_path / "elsewhere" / relative).mkdir(parents=True)  # a folder here comes first, and this one is no model
    with pytest.raises(DataError, match="not a model folder"):
        find_model(ModelQuery(folder=relative))


def test_fold_folder_given_as_model_names_the_right_one(results):
    made = make_folder(results)
    with pytest.raises(DataError) as caught:
        find_model(ModelQuery(folder=made / "fold_0"))
    assert caught.value.run == f"-m {made} -f 0"


def test_folds(results):
    make_folder(results, checkpoints=("0/final", "10/final", "2/final", "3/latest", "all/final"))
    model = find_model(ModelQuery())
    assert find_folds(model, None) == ["0", "2", "10"]
    assert find_folds(model, [10, "0"]) == ["10", "0"]
    assert find_folds(model, ["all"]) == ["all"]
    with pytest.raises(UsageError, match="fold 3, 7") as caught:
        find_folds(model, [0, 3, 7])
    assert caught.value.run == "-f 0 2 10 all"


def test_fold_all_alone_is_taken(results):
    make_folder(results, checkpoints=("all/final",))
    assert find_folds(find_model(ModelQuery()), None) == ["all"]


def test_models_are_found_by_their_name_below_the_results(results, tmp_path):
    made = make_folder(results, checkpoints=("0/final", "1/final"))
    whole = f"Dataset001_A/{made.name}"
    for given, fold in (
        (made, []),
        (made.name, []),
        (whole, []),
        (f"{whole}/fold_1", ["1"]),
        (f"{made.name}/fold_0", ["0"]),
    ):
        model, own = find_named(given)
        assert (model.path, own) == (made, fold)
    assert find_named(made / "fold_1")[1] == ["1"]
    with pytest.raises(UsageError, match="no such model") as caught:
        find_named("other")
    assert caught.value.why == whole
    shutil.copytree(made, results / "Dataset002_B" / made.name)
    with pytest.raises(UsageError, match="several models") as caught:
        find_named(made.name)
    assert caught.value.why.splitlines() == [whole, f"Dataset002_B/{made.name}"]
    assert find_named(f"Dataset002_B/{made.name}")[0].dataset == "Dataset002_B"
    with pytest.raises(DataError):
        find_named(tmp_path)
