from __future__ import annotations

import json
import logging
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from skimage.measure import label

from nnssl.errors import DataError, StoppedBySignal
from nnssl.inference.predictor import Predictor
from nnssl.labelling.store import UNSURE, read_pseudo_label, write_pseudo_label
from nnssl_trainers.frame.stored_labels import Predicted, StoredLabelsTrainer
from tests.conftest import tiny_case
from tests.nnssl_trainers.frame.conftest import same, weights

METHOD = "SelfTrainingTrainer"
RUN = {"num_iterations": 12, "epoch": 4, "seed": 5, "staged": True}  # 6 supervised, 5 with pseudo-labels, 1 without
NO_LOOK = {"ready_dice": 0.0}
UNLABELLED = [f"un_{i:02d}" for i in range(4)]


def stored(trainer) -> list[str]:
    return sorted(file.stem for file in trainer.pseudo_folder.glob("*.b2nd"))


@pytest.fixture
def whole(make_trainer):
    """Return the weights that a run without interruption ends with, and its pseudo-labels."""
    trainer = make_trainer(METHOD, 2, **RUN, config=NO_LOOK)
    trainer.run_training()
    labels = {case: read_pseudo_label(trainer.pseudo_folder / f"{case}.b2nd") for case in UNLABELLED}
    return weights(Path(trainer.output_folder)), labels


def go_on(make_trainer, first, whole) -> None:
    """Continue a run that was stopped or killed, and compare it with the run without interruption."""
    second = make_trainer(METHOD, 2, **RUN, config=NO_LOOK, tag=first.settings.tag)
    second.load_checkpoint(str(Path(first.output_folder) / "checkpoint_latest.pth"))
    second.run_training()
    expected, labels = whole
    assert same(weights(Path(second.output_folder)), expected)
    for case, (found, confidence) in labels.items():
        ours = read_pseudo_label(second.pseudo_folder / f"{case}.b2nd")
        assert np.array_equal(ours[0], found)
        assert np.array_equal(ours[1], confidence)


@pytest.mark.parametrize("stop_at", [3, 6, 8, 11])
def test_a_run_stopped_in_a_stage_ends_like_an_uninterrupted_one(stop_at: int, make_trainer, whole) -> None:
    first = make_trainer(METHOD, 2, **RUN, config=NO_LOOK, tag="stopped")
    step = first.train_step

    def stop_after(batch):
        result = step(batch)
        if first.iteration == stop_at:
            first.request_stop()
        return result

    first.train_step = stop_after
    with pytest.raises(StoppedBySignal):
        first.run_training()
    go_on(make_trainer, first, whole)


@pytest.mark.parametrize("how", ["signal", "kill"])
def test_a_run_that_ends_while_scans_are_labelled_goes_on_with_the_missing_ones(
    how: str, make_trainer, whole, monkeypatch
) -> None:
    first = make_trainer(METHOD, 2, **RUN, config=NO_LOOK, tag="stopped")
    predicted: list[str] = []
    predict = Predictor.predict_sliding_window_return_logits

    def count(self, image):
        predicted.append("scan")
        if len(predicted) == 3:
            if how == "kill":
                raise KeyboardInterrupt
            first.request_stop()
        return predict(self, image)

    monkeypatch.setattr(Predictor, "predict_sliding_window_return_logits", count)
    with pytest.raises(StoppedBySignal if how == "signal" else KeyboardInterrupt):
        first.run_training()
    there = stored(first)
    assert 0 < len(there) < 4
    assert not list(first.pseudo_folder.glob(".*"))
    go_on(make_trainer, first, whole)
    assert len(predicted) - 3 == 4 - len(there)


def test_a_run_killed_before_its_next_checkpoint_labels_nothing_again(make_trainer, whole, monkeypatch) -> None:
    first = make_trainer(METHOD, 2, **RUN, config=NO_LOOK, tag="stopped")
    step = first.train_step

    def die(batch):
        if first.iteration == 7:
            raise KeyboardInterrupt
        return step(batch)

    first.train_step = die
    with pytest.raises(KeyboardInterrupt):
        first.run_training()
    monkeypatch.setattr(Predictor, "predict_sliding_window_return_logits", lambda *_: pytest.fail("predicted again"))
    go_on(make_trainer, first, whole)


@pytest.mark.parametrize("dim", [2, 3])
def test_stored_labels_are_the_mirrored_prediction_of_the_supervised_network(dim: int, make_trainer) -> None:
    trainer = make_trainer(METHOD, dim, **RUN, config=NO_LOOK | {"pseudo_components": False})
    trainer.initialize()
    for parameter in trainer.network.parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    trainer.iteration, trainer.current_epoch = 6, 1
    network = trainer.new_network()
    network.load_state_dict(trainer.network.state_dict())
    trainer.begin_second_stage()
    assert stored(trainer) == UNLABELLED
    network.decoder.deep_supervision = False
    image = torch.from_numpy(trainer.unlabelled_dataset().load_case("un_01")[0][:])
    patch = (image[:, :1] if dim == 2 else image[:, :16])[None, :, :, :16, :16]  # the only patch of the first corner
    patch = patch[:, :, 0] if dim == 2 else patch
    flips = [[axis + 2 for axis in range(dim) if number >> axis & 1] for number in range(2**dim)]
    with torch.no_grad():
        mean = torch.stack([network(patch.flip(flip)).flip(flip) for flip in flips]).mean(0)
    inner = slice(3, 6)  # nnU-Net weighs voxels in the corner of a patch so low that half precision rounds them away
    probs = mean.softmax(1)[0][(slice(None), inner, inner) if dim == 2 else (slice(None), slice(2, 4), inner, inner)]
    labels, confidence = read_pseudo_label(trainer.pseudo_folder / "un_01.b2nd")
    part = (0, inner, inner) if dim == 2 else (slice(2, 4), inner, inner)
    expected, guess = probs.max(0)
    difference = np.abs(confidence[part] / 255 - expected.numpy())
    assert difference.max() < 0.01  # nnU-Net sums in half precision
    sure = (probs.topk(2, 0).values.diff(dim=0).abs()[0] > 0.01).numpy()
    assert np.array_equal(labels[part][sure], guess.numpy()[sure])
    assert sure.mean() > 0.5


def test_stored_labels_have_one_component_where_every_label_has(make_trainer, make_tiny) -> None:
    truth = sitk.GetArrayFromImage(sitk.ReadImage(str(make_tiny(2) / "gt_segmentations" / "case_00.nii.gz")))
    assert all(label(truth == value, connectivity=3).max() == 1 for value in (1, 2))
    as_predicted, cleaned = [], []
    for kept, results in ((False, as_predicted), (True, cleaned)):
        trainer = make_trainer(METHOD, 2, **RUN, config=NO_LOOK | {"pseudo_components": kept}, tag=f"kept{kept}")
        trainer.initialize()
        torch.manual_seed(0)
        for parameter in trainer.network.parameters():
            parameter.data.add_(0.2 * torch.randn_like(parameter))
        trainer.iteration, trainer.current_epoch = 6, 1
        trainer.begin_second_stage()
        results += [read_pseudo_label(trainer.pseudo_folder / f"{case}.b2nd") for case in UNLABELLED]
    removed = 0
    for (before, sure), (after, confidence) in zip(as_predicted, cleaned, strict=True):
        expected = before.copy()
        for values in ((1, 2), (1,), (2,)):
            components = label(np.isin(expected, values), connectivity=3)
            sizes = np.bincount(components.ravel())[1:]
            expected[(components > 0) & ~np.isin(components, np.flatnonzero(sizes == sizes.max(initial=0)) + 1)] = 0
        assert np.array_equal(after, expected)
        assert np.array_equal(confidence, sure)
        removed += (before != after).sum()
    assert removed > 0


def test_the_report_names_origin_scores_and_verdict(make_trainer) -> None:
    trainer = make_trainer(METHOD, 2, **RUN, config={**NO_LOOK, "keep_share": 0.5})
    trainer.run_training()
    report = json.loads((trainer.pseudo_folder / "cases.json").read_text())
    assert list(report) == UNLABELLED
    assert {entry["origin"] for entry in report.values()} == {"model"}
    assert {entry["source"] for entry in report.values()} == {"checkpoint_supervised.pth"}
    kept = [case for case, entry in report.items() if entry["kept"]]
    assert kept == trainer.kept
    assert len(kept) == 2
    for case, entry in report.items():
        labels, confidence = read_pseudo_label(trainer.pseudo_folder / f"{case}.b2nd")
        for k, name in enumerate(("core", "rim"), start=1):
            assert entry["volumes_ml"][name] == pytest.approx((labels == k).sum() / 1000)
            mean = confidence[labels == k].mean() / 255 if (labels == k).any() else None
            assert entry["confidence"][name] == (None if mean is None else pytest.approx(mean))
    assert trainer.dataset_to_draw().identifiers == kept


def test_volumes_are_compared_with_those_of_the_labelled_scans(make_trainer, make_tiny) -> None:
    folder = make_tiny(2)
    trainer = make_trainer(METHOD, 2, **RUN, config=NO_LOOK)
    trainer.initialize()
    expected = []
    for case in trainer.do_split()[0]:
        labels = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "gt_segmentations" / f"{case}.nii.gz")))
        expected.append(tuple((labels == k).sum() / 1000 for k in (1, 2)))
    assert len(expected) == 4
    np.testing.assert_allclose(trainer._labelled_volumes(), expected)


def test_an_ignore_label_hides_the_volumes(make_trainer, make_tiny) -> None:
    folder = make_tiny(2)
    content = json.loads((folder / "dataset.json").read_text())
    content["labels"] = {"background": 0, "core": 1, "ignore": 2}
    (folder / "dataset.json").write_text(json.dumps(content))
    trainer = make_trainer(METHOD, 2, **RUN, config=NO_LOOK)
    trainer.initialize()
    assert trainer._labelled_volumes() == []


def test_a_network_that_does_not_know_a_class_labels_nothing(make_trainer, caplog) -> None:
    trainer = make_trainer(METHOD, 2, **RUN, config={"ready_dice": 0.99})
    with caplog.at_level(logging.INFO):
        trainer.run_training()
    assert trainer.kept == []
    assert trainer.unlabelled_from is None
    assert stored(trainer) == []
    assert len(trainer.labelled_dice) == 2
    assert "this run is supervised: no unlabelled scan counted" in caplog.text
    assert caplog.text.count("no scan is labelled: a class is below 0.99 (Dice on labelled scans: core 0.") == 1
    assert "do not count yet" not in caplog.text


def test_readiness_is_the_dice_on_whole_labelled_scans(make_trainer, monkeypatch) -> None:
    trainer = make_trainer(METHOD, 2, **RUN)
    trainer.initialize()
    dataset = trainer._labelled_dataset()
    truth = {case: dataset.load_case(case)[1][:][0] for case in dataset.identifiers}
    wrong = {case: np.where(labels == 2, 1, labels) for case, labels in truth.items()}
    wrong[dataset.identifiers[0]] = truth[dataset.identifiers[0]]

    def predict(self, _, cases, store):
        for case in cases:
            store(Predicted(case, wrong[case], np.full(truth[case].shape, 255, np.uint8)))

    monkeypatch.setattr(StoredLabelsTrainer, "predict_scans", predict)
    core = sum((labels == 1).sum() for labels in truth.values())
    rim = sum((labels == 2).sum() for labels in truth.values())
    found = (truth[dataset.identifiers[0]] == 2).sum()
    expected = (2 * core / (2 * core + rim - found), 2 * found / (found + rim))
    assert trainer._dice_on_labelled_scans() == pytest.approx(expected)


def test_pseudo_labelled_patches_reach_the_batch(make_trainer) -> None:
    trainer = make_trainer(METHOD, 2, config={"pseudo_confidence": 0.5, "pseudo_foreground": 1.0})
    trainer.initialize()
    stream, _ = trainer.get_dataloaders()
    batch = trainer._move_to_device(next(stream))
    labels, counted = batch.stored_labels
    assert batch.target_u.shape == (2, 1, 16, 16)
    assert torch.equal(counted, (batch.target_u >= 0) & (batch.target_u != UNSURE))
    assert torch.equal(labels[counted], batch.target_u[counted].long())
    assert not labels[~counted].any()
    assert 0 < counted.float().mean() < 1
    stream.close()


def test_hidden_cases_are_labelled_without_their_labels(make_trainer, make_tiny) -> None:
    folder = make_tiny(2)
    split = json.loads((folder / "splits_final.json").read_text())
    split[0]["train"], hidden = split[0]["train"][:2], split[0]["train"][2:]
    source, target = folder / "nnUNetPlans_2d", folder / "nnUNetPlans_2d_unlabelled"
    for case in hidden:  # a hidden case stands in the folder of unlabelled cases; its labels there are all zero
        for file in source.glob(f"{case}*"):
            file.rename(target / file.name)
        properties = pickle.loads((target / f"{case}.pkl").read_bytes())
        properties["class_locations"] = {}
        (target / f"{case}.pkl").write_bytes(pickle.dumps(properties))
    split[0]["unlabelled"] += hidden
    (folder / "splits_final.json").write_text(json.dumps(split))
    trainer = make_trainer(METHOD, 2, **RUN, config=NO_LOOK)
    trainer.run_training()
    assert stored(trainer) == sorted(UNLABELLED + hidden)
    assert not set(stored(trainer)) & set(trainer.do_split()[1])


@pytest.fixture
def masks(tmp_path, make_tiny) -> Path:
    """Return a folder with masks of three of the four unlabelled scans; one has a file with its confidence."""
    make_tiny(2)
    folder, rng = tmp_path / "masks", np.random.default_rng(2)
    folder.mkdir()
    for case in UNLABELLED[:3]:
        sitk.WriteImage(sitk.GetImageFromArray(tiny_case(rng)[1][0]), str(folder / f"{case}.nii.gz"))
    confidence = rng.random((20, 24, 22)).astype(np.float32)
    sitk.WriteImage(sitk.GetImageFromArray(confidence), str(folder / "un_01_confidence.nii.gz"))
    return folder


def test_given_masks_take_the_place_of_the_first_two_stages(make_trainer, masks, monkeypatch) -> None:
    monkeypatch.setattr(StoredLabelsTrainer, "predict_scans", lambda *_: pytest.fail("predicted"))
    trainer = make_trainer(METHOD, 2, **RUN, pseudo_labels=str(masks))
    trainer.run_training()
    assert trainer.unlabelled_from == 0
    assert trainer.supervised_key() == ""
    assert sorted(trainer.kept) == stored(trainer) == UNLABELLED[:3]
    report = json.loads((trainer.pseudo_folder / "cases.json").read_text())
    for case, entry in report.items():
        mask = sitk.GetArrayFromImage(sitk.ReadImage(str(masks / f"{case}.nii.gz")))
        labels, confidence = read_pseudo_label(trainer.pseudo_folder / f"{case}.b2nd")
        assert np.array_equal(labels, mask)
        assert (confidence == 255).all() == (case != "un_01")
        assert entry["origin"] == "file"
        assert entry["source"] == str(masks / f"{case}.nii.gz")
        assert len(entry["sha256"]) == 64
    assert report["un_00"]["score"] == 1
    assert 0.4 < report["un_01"]["score"] < 0.6
    assert trainer.do_split()[0] == [f"case_{i:02d}" for i in range(4)]  # given masks are no labels


def test_a_run_with_given_masks_goes_on_without_their_folder(make_trainer, masks) -> None:
    whole = make_trainer(METHOD, 2, **RUN, pseudo_labels=str(masks))
    whole.run_training()
    first = make_trainer(METHOD, 2, **RUN, pseudo_labels=str(masks), tag="stopped")
    step = first.train_step
    first.train_step = lambda batch: (step(batch), first.iteration == 5 and first.request_stop())[0]
    with pytest.raises(StoppedBySignal):
        first.run_training()
    shutil.rmtree(masks)
    second = make_trainer(METHOD, 2, **RUN, pseudo_labels=str(masks), tag="stopped")
    second.load_checkpoint(str(Path(first.output_folder) / "checkpoint_latest.pth"))
    second.run_training()
    assert same(weights(Path(second.output_folder)), weights(Path(whole.output_folder)))


def test_a_wrong_mask_ends_the_run_before_training(make_trainer, masks) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(np.full((20, 24, 22), 9, np.uint8)), str(masks / "un_02.nii.gz"))
    trainer = make_trainer(METHOD, 2, **RUN, pseudo_labels=str(masks))
    with pytest.raises(DataError, match="1 problem"):
        trainer.run_training()
    assert stored(trainer) == []
    assert trainer.iteration == 0


def test_labels_of_a_killed_run_without_a_checkpoint_are_not_taken_over(make_trainer, masks) -> None:
    trainer = make_trainer(METHOD, 2, **RUN, pseudo_labels=str(masks))
    trainer.initialize()
    old = np.zeros((20, 24, 22), np.uint8)
    write_pseudo_label(trainer.pseudo_folder / "un_00.b2nd", old, old, [1, 2], 0.0)
    trainer.begin_second_stage()
    assert read_pseudo_label(trainer.pseudo_folder / "un_00.b2nd")[0].any()
