from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from nnssl.data.streams import seeded
from nnssl.errors import DataError
from nnssl.host import drawn_cases
from nnssl.registry import METHODS
from nnssl_trainers.frame.data_streams import UnlabelledConfig


@pytest.fixture
def ready(make_trainer):
    """Return a function that makes an initialised trainer with two epochs of two iterations."""

    def make(name: str = "MeanTeacherTrainer", **run):
        trainer = make_trainer(name, 2, epoch=2, num_iterations=4, **run)
        trainer.initialize()
        return trainer

    return make


def test_the_stream_gives_training_and_validation_batches_in_turn(ready) -> None:
    training, validation = ready().get_dataloaders()
    assert training is validation
    kinds = ["validation" if "validation" in batch else "training" for batch in training]
    assert kinds == ["training", "training", "validation", "training", "training", "validation"]


def test_the_wait_for_data_goes_on_counting_when_the_streams_are_opened_anew(ready) -> None:
    trainer = ready()
    trainer.dataloader_train, _ = trainer.get_dataloaders()
    before = trainer.dataloader_train
    before.seconds_waited = 7.5
    trainer.reopen_streams()
    assert trainer.dataloader_train is not before
    assert trainer.dataloader_train.seconds_waited == 7.5
    trainer.dataloader_train.close()


def test_a_batch_depends_on_seed_and_iteration_alone(ready) -> None:
    whole = list(ready().get_dataloaders()[0])
    continued = ready()
    continued.iteration, continued.current_epoch = 3, 1
    np.random.seed(99)
    torch.manual_seed(99)
    rest = list(continued.get_dataloaders()[0])
    assert len(rest) == 2
    for stream in ("labelled", "unlabelled"):
        assert torch.equal(rest[0][stream]["data"], whole[4][stream]["data"])
        assert not torch.equal(whole[3][stream]["data"], whole[4][stream]["data"])
    assert torch.equal(rest[1]["validation"]["data"], whole[5]["validation"]["data"])
    other = next(ready(seed=1).get_dataloaders()[0])
    assert not torch.equal(other["labelled"]["data"], whole[0]["labelled"]["data"])


def test_labelled_and_validation_cases_of_the_fold(ready) -> None:
    trainer = ready()
    assert trainer.do_split() == ([f"case_{i:02d}" for i in range(4)], ["case_04", "case_05"])
    assert trainer.fold_cases().unlabelled == tuple(f"un_{i:02d}" for i in range(4))


def test_methods_with_unlabelled_scans_have_a_weight_for_them() -> None:
    for method in METHODS.values():
        config_class = method.load().config_class
        assert issubclass(config_class, UnlabelledConfig) == ("unlabelled" in method.needs)
        assert not method.needs or config_class().unlabelled_weight == 1.0


@pytest.mark.parametrize(("config", "expected"), [({}, 0.5), ({"strong_probability": 0.25}, 0.25)])
def test_probability_of_the_strong_view(config, expected: float, ready) -> None:
    assert ready(config=config).strong_probability == expected
    assert ready("PLGDFTrainer").strong_probability == 0.0  # this method has no strong view


def test_a_fold_without_unlabelled_scans_is_an_error_with_a_remedy(make_tiny, make_trainer) -> None:
    folder = make_tiny(2)
    (split,) = json.loads((folder / "splits_final.json").read_text())
    (folder / "splits_final.json").write_text(json.dumps([{**split, "unlabelled": []}]))
    trainer = make_trainer("MeanTeacherTrainer", 2)
    trainer.initialize()
    with pytest.raises(DataError, match="MeanTeacherTrainer needs unlabelled scans") as raised:
        trainer.get_dataloaders()
    assert "-tr SupervisedTrainer" in raised.value.run


def test_unlabelled_scans_that_are_not_preprocessed_are_named(make_tiny, make_trainer) -> None:
    folder = make_tiny(2)
    for case in ("un_01", "un_03"):
        (folder / "nnUNetPlans_2d_unlabelled" / f"{case}.pkl").unlink()
    trainer = make_trainer("MeanTeacherTrainer", 2)
    trainer.initialize()
    with pytest.raises(DataError, match=r"2 unlabelled case\(s\) are not preprocessed") as raised:
        trainer.get_dataloaders()
    assert raised.value.why == "un_01, un_03"
    assert raised.value.run == "nnssl_plan_and_preprocess -d Dataset905_Tiny -c 2d"


@pytest.mark.parametrize("name", ["MeanTeacherTrainer", "DPTMTrainer"])
def test_the_cases_of_a_batch_are_found_again(ready, name: str) -> None:
    training, _ = ready(name).get_dataloaders()
    for maker in training._loader.dataset.makers.values():
        with seeded(1, 2):
            cases = maker.generate_train_batch()["keys"]
        with seeded(1, 2):
            assert drawn_cases(maker) == list(cases)


def test_under_a_setting_every_stream_draws_all_domains_equally_often(make_tiny, ready) -> None:
    folder = make_tiny(2)
    (split, *_) = json.loads((folder / "splits_final.json").read_text())
    (folder / "splits_final@mdg-C.json").write_text(json.dumps([split]))
    trainer = ready(setting="mdg:C")
    places = {"case_00": "A", "un_00": "B"}  # the others have none, and count as one domain
    trainer.dataset_json = {**trainer.dataset_json, "cases": {case: {"domain": at} for case, at in places.items()}}
    stream, _ = trainer.get_dataloaders()
    makers = stream._loader.dataset.makers
    for name, first in (("labelled", "case_00"), ("unlabelled", "un_00")):
        cases = list(makers[name].indices)
        shares = dict(zip(cases, makers[name].sampling_probabilities, strict=True))
        assert shares[first] == pytest.approx(0.5)
        assert sum(shares.values()) == pytest.approx(1)
        drawn = [case for k in range(300) for case in _drawn(makers[name], k)]
        assert drawn.count(first) / len(drawn) == pytest.approx(0.5, abs=0.08)
    plain, _ = ready().get_dataloaders()
    assert plain._loader.dataset.makers["labelled"].sampling_probabilities is None


def _drawn(maker, key: int) -> list[str]:
    with seeded(key):
        return drawn_cases(maker)


@pytest.mark.parametrize(("name", "dim"), [("MeanTeacherTrainer", 2), ("DPTMTrainer", 3)])
def test_a_cache_of_decoded_cases_leaves_every_batch_as_it_is(name: str, dim: int, make_trainer, make_tiny) -> None:
    make_tiny(dim)
    batches = []
    for size in (0, 10**9):
        trainer = make_trainer(name, dim)
        trainer.cache_bytes = size
        trainer.initialize()
        stream, _ = trainer.get_dataloaders()
        assert (trainer._cache.used_bytes > 0) == (size > 0)
        batches.append([next(stream) for _ in range(3)])
    for plain, cached in zip(*batches, strict=True):
        assert plain.keys() == cached.keys()
        for part, content in plain.items():
            for key, value in content.items():
                pairs = (
                    zip(value, cached[part][key], strict=True)
                    if isinstance(value, list)
                    else [(value, cached[part][key])]
                )
                assert all(torch.equal(a, b) for a, b in pairs), (part, key)
