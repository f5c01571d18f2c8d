from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nnssl.errors import EnvironmentProblem


@pytest.fixture
def ready(make_trainer):
    """Return a function that makes an initialised trainer."""

    def make(name: str = "SupervisedTrainer", **run):
        trainer = make_trainer(name, 2, **run)
        trainer.initialize()
        return trainer

    return make


def weights(network: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


def test_the_seed_decides_the_first_weights(ready) -> None:
    one = ready(seed=1)
    torch.manual_seed(5)
    torch.rand(3)
    same, other = ready(seed=1), ready(seed=2)
    assert torch.equal(weights(one.network), weights(same.network))
    assert not torch.equal(weights(one.network), weights(other.network))


def test_a_trainer_is_initialised_once(ready) -> None:
    trainer = ready()
    with pytest.raises(RuntimeError, match="initialize was called twice"):
        trainer.initialize()


def test_weights_of_another_training_except_the_segmentation_layers(ready, make_trainer, tmp_path: Path) -> None:
    other = ready(seed=1)
    other.save_checkpoint(str(tmp_path / "weights.pth"))
    theirs = other.network.state_dict()
    trainer = make_trainer("SupervisedTrainer", 2, seed=2)
    trainer.load_pretrained(str(tmp_path / "weights.pth"))
    fresh = ready(seed=2).network.state_dict()
    for name, value in trainer.network.state_dict().items():
        assert torch.equal(value, fresh[name] if ".seg_layers." in name else theirs[name])
    heads = [name for name in fresh if ".seg_layers." in name and name.endswith("weight")]
    assert heads
    assert not any(torch.equal(fresh[name], theirs[name]) for name in heads)


def test_weights_of_another_network_are_refused(ready, make_trainer, tmp_path: Path) -> None:
    ready(config={"network": "vnet"}).save_checkpoint(str(tmp_path / "weights.pth"))
    trainer = make_trainer("SupervisedTrainer", 2)
    with pytest.raises(EnvironmentProblem, match="do not fit the network of the plans") as raised:
        trainer.load_pretrained(str(tmp_path / "weights.pth"))
    assert "tensors are missing or of other shape, encoder." in raised.value.why


def test_every_trained_network_has_the_factor_of_the_schedule(ready) -> None:
    trainer = ready(num_iterations=8)
    assert trainer.learning_rate_factors(2) == pytest.approx([0.75**0.9])


def test_the_students_optimiser_trains_a_further_module(ready) -> None:
    trainer = ready()
    module = nn.Linear(2, 1)
    trainer.train_with_student(module)
    before = module.weight.detach().clone()
    trainer._optimise(module(torch.ones(1, 2)).sum() + 0 * weights(trainer.network).sum())
    assert not torch.equal(module.weight, before)


def test_a_new_network_is_not_the_trained_one(ready) -> None:
    trainer = ready()
    fresh = trainer.new_network()
    assert type(fresh) is type(trainer.network)
    assert not torch.equal(weights(fresh), weights(trainer.network))
