from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnssl.errors import StoppedBySignal
from nnssl.inference.predictor import Predictor
from nnssl.labelling.scores import agreement
from nnssl.labelling.store import read_agreement, read_pseudo_label
from nnssl_trainers.frame.validation import predictor_of
from tests.conftest import tiny_case
from tests.nnssl_trainers.frame.conftest import same, weights

METHOD = "SelfTrainingTrainer"
RUN = {"num_iterations": 16, "epoch": 4, "seed": 5, "staged": True}
NO_LOOK = {"ready_dice": 0.0}
BOTH = {**NO_LOOK, "members": 2, "rounds": 2, "finetune_share": 0.25}  # members 0-3, 4-7; rounds 8-11, 12-15
UNLABELLED = [f"un_{i:02d}" for i in range(4)]


def stored(folder: Path) -> list[str]:
    return sorted(file.stem for file in folder.glob("*.b2nd"))


def folders(trainer) -> list[Path]:
    return [Path(trainer.output_folder) / name for name in ("pseudo_labels", "pseudo_labels_2")]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {0: (0, 8), 7: (0, 8), 8: (8, 8), 15: (8, 8)}),
        ({"members": 2}, {0: (0, 4), 3: (0, 4), 4: (4, 4), 8: (8, 8)}),
        ({"members": 3, "supervised_share": 0.3}, {0: (0, 1), 1: (1, 2), 2: (1, 2), 3: (3, 2), 5: (5, 11)}),
        ({"rounds": 2}, {0: (0, 8), 8: (8, 4), 11: (8, 4), 12: (12, 4), 15: (12, 4)}),
    ],
)
def test_every_member_and_round_has_a_schedule(settings: dict, expected: dict, make_trainer) -> None:
    trainer = make_trainer(METHOD, 2, **RUN, config=settings)
    assert {iteration: trainer.stage_at(iteration) for iteration in expected} == expected
    for iteration, (begin, length) in expected.items():
        factor = (1 - (iteration - begin) / length) ** 0.9
        assert trainer.learning_rate_factors(iteration) == pytest.approx([factor])
    assert (trainer.supervised_key() == "") == ("members" in settings)


def test_members_are_supervised_runs_of_their_length(make_trainer) -> None:
    alone = make_trainer("SupervisedTrainer", 2, num_iterations=4, epoch=4, seed=5)
    alone.run_training()
    trainer = make_trainer(METHOD, 2, **RUN, config={**NO_LOOK, "members": 2})
    starts = {}
    step = trainer.train_step
    trainer.train_step = lambda batch: (
        starts.update({trainer.iteration: {k: v.clone() for k, v in trainer.network.state_dict().items()}}),
        step(batch),
    )[1]
    trainer.run_training()
    folder = Path(trainer.output_folder)
    assert same(weights(folder, "checkpoint_member_1.pth"), weights(Path(alone.output_folder)))
    torch.manual_seed(1005)
    assert same(starts[4], trainer.new_network().state_dict())
    assert not same(weights(folder, "checkpoint_supervised.pth"), weights(folder, "checkpoint_member_1.pth"))
    torch.manual_seed(6)
    assert same(starts[8], trainer.new_network().state_dict())


@pytest.mark.parametrize("dim", [2, 3])
def test_members_label_by_their_mean_probability(dim: int, make_trainer) -> None:
    trainer = make_trainer(METHOD, dim, **RUN, config={**NO_LOOK, "members": 2, "pseudo_components": False})
    trainer.run_training()
    folder, case = Path(trainer.output_folder), "un_02"
    network = trainer.new_network().eval()
    network.decoder.deep_supervision = False
    image, probs = torch.from_numpy(trainer.unlabelled_dataset().load_case(case)[0][:]), []
    for file in ("checkpoint_member_1.pth", "checkpoint_supervised.pth"):
        network.load_state_dict(weights(folder, file))
        probs.append(predictor_of(trainer, network).predict_sliding_window_return_logits(image).float().softmax(0))
    path = trainer.pseudo_folder / f"{case}.b2nd"
    labels, confidence = read_pseudo_label(path)
    mean = (probs[0] + probs[1]) / 2
    sure = (mean.topk(2, 0).values.diff(dim=0).abs()[0] > 0.01).numpy()
    assert np.array_equal(labels[sure], mean.argmax(0).numpy()[sure])
    assert np.abs(confidence / 255 - mean.amax(0).numpy()).max() < 0.01
    expected = agreement([p.argmax(0).numpy() for p in probs], [1, 2])
    assert read_agreement(path) == pytest.approx(expected, abs=0.01)
    report = json.loads((trainer.pseudo_folder / "cases.json").read_text())
    assert report[case]["agreement"] == dict(zip(("core", "rim"), read_agreement(path), strict=True))
    assert report[case]["source"] == "checkpoint_member_1.pth, checkpoint_supervised.pth"
    known = [value for value in read_agreement(path) if value is not None]
    assert report[case]["score"] == (pytest.approx(sum(known) / len(known)) if known else None)


@pytest.fixture
def whole(make_trainer):
    """Return a run with two members and two rounds, without interruption."""
    trainer = make_trainer(METHOD, 2, **RUN, config=BOTH)
    trainer.run_training()
    return trainer


def test_the_second_round_learns_what_the_first_network_labels(make_trainer) -> None:
    trainer = make_trainer(METHOD, 2, **RUN, config=BOTH)
    seen, step = {}, trainer.train_step

    def watch(batch):
        seen[trainer.iteration] = (
            trainer.network.state_dict()["decoder.seg_layers.0.weight"].clone(),
            "unlabelled" in batch,
        )
        return step(batch)

    trainer.train_step = watch
    labelled_with = []
    predict = trainer.predict_scans

    def note(dataset, cases, store):
        if list(cases) == UNLABELLED:
            labelled_with.append([w["decoder.seg_layers.0.weight"].clone() for w in trainer.labelling_weights()])
        predict(dataset, cases, store)

    trainer.predict_scans = note
    trainer.run_training()
    assert [len(members) for members in labelled_with] == [2, 1]
    assert [stored(folder) for folder in folders(trainer)] == [UNLABELLED, UNLABELLED]
    assert [seen[i][1] for i in range(16)] == [False] * 8 + [True, True, True, False] * 2
    torch.manual_seed(7)
    assert torch.equal(seen[12][0], trainer.new_network().state_dict()["decoder.seg_layers.0.weight"])
    assert not torch.equal(seen[12][0], labelled_with[1][0])
    assert trainer.unlabelled_from == 8
    report = json.loads((folders(trainer)[1] / "cases.json").read_text())
    assert {entry["source"] for entry in report.values()} == {"the network of round 1"}
    assert "agreement" not in report["un_00"]


def go_on(make_trainer, first, whole) -> None:
    """Continue a run that was stopped, and compare it with the run without interruption."""
    second = make_trainer(METHOD, 2, **RUN, config=BOTH, tag=first.settings.tag)
    second.load_checkpoint(str(Path(first.output_folder) / "checkpoint_latest.pth"))
    second.run_training()
    assert same(weights(Path(second.output_folder)), weights(Path(whole.output_folder)))
    for ours, theirs in zip(folders(second), folders(whole), strict=True):
        for case in UNLABELLED:
            for a, b in zip(
                read_pseudo_label(ours / f"{case}.b2nd"), read_pseudo_label(theirs / f"{case}.b2nd"), strict=True
            ):
                assert np.array_equal(a, b)


@pytest.mark.parametrize("stop_at", [2, 4, 6, 8, 11, 12, 15])
def test_a_stopped_run_ends_like_an_uninterrupted_one(stop_at: int, make_trainer, whole) -> None:
    first = make_trainer(METHOD, 2, **RUN, config=BOTH, tag="stopped")
    step = first.train_step
    first.train_step = lambda batch: (step(batch), first.iteration == stop_at and first.request_stop())[0]
    with pytest.raises(StoppedBySignal):
        first.run_training()
    go_on(make_trainer, first, whole)


@pytest.mark.parametrize("predictions", [3, 10])  # 2 members of 4 scans, then 1 network
def test_a_run_killed_while_it_labels_goes_on(predictions: int, make_trainer, whole, monkeypatch) -> None:
    first = make_trainer(METHOD, 2, **RUN, config=BOTH, tag="killed")
    predict, count = Predictor.predict_sliding_window_return_logits, []

    def die(self, image):
        count.append(1)
        if len(count) == predictions:
            raise KeyboardInterrupt
        return predict(self, image)

    monkeypatch.setattr(Predictor, "predict_sliding_window_return_logits", die)
    with pytest.raises(KeyboardInterrupt):
        first.run_training()
    monkeypatch.setattr(Predictor, "predict_sliding_window_return_logits", predict)
    go_on(make_trainer, first, whole)


def test_a_run_that_is_not_ready_has_one_schedule_after_the_supervised_stage(make_trainer) -> None:
    trainer = make_trainer(METHOD, 2, **RUN, config={"ready_dice": 0.99, "rounds": 2})
    trainer.run_training()
    assert trainer.kept == []
    assert trainer.stage_at(13) == (8, 8)
    assert [stored(folder) for folder in folders(trainer)] == [[], []]


def test_given_masks_are_those_of_the_first_round(make_trainer, make_tiny, tmp_path) -> None:
    make_tiny(2)
    masks, rng = tmp_path / "masks", np.random.default_rng(2)
    masks.mkdir()
    for case in UNLABELLED[:3]:
        sitk.WriteImage(sitk.GetImageFromArray(tiny_case(rng)[1][0]), str(masks / f"{case}.nii.gz"))
    trainer = make_trainer(METHOD, 2, **RUN, config={**NO_LOOK, "rounds": 2}, pseudo_labels=str(masks))
    trainer.run_training()
    assert trainer.round_begins == [0, 8]
    reports = [json.loads((folder / "cases.json").read_text()) for folder in folders(trainer)]
    assert {entry["origin"] for entry in reports[0].values()} == {"file"}
    assert {entry["origin"] for entry in reports[1].values()} == {"model"}
    assert [len(report) for report in reports] == [3, 4]
