"""The tests that translate a network need the packages of the extra `onnx`; without them they are left out."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import nnssl
from nnssl.bundles import onnx_file
from nnssl.errors import DataError, UsageError
from nnssl.inference.network import load_model


def translated() -> None:
    for name in onnx_file.PACKAGES:
        pytest.importorskip(name)


def test_one_fold_goes_into_one_file(model, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(onnx_file, "PACKAGES", ())
    with pytest.raises(UsageError, match="one fold") as error:
        nnssl.export_model(model, tmp_path / "model.zip", onnx=tmp_path / "model.onnx")
    assert error.value.run == "-f 0"
    assert not (tmp_path / "model.zip").exists()


def test_the_logits_are_those_of_torch(model, tmp_path) -> None:
    translated()
    import onnx
    import onnxruntime

    file = tmp_path / "model.onnx"
    result = nnssl.export_model(model, tmp_path / "model.zip", folds=[1], onnx=file)
    assert result.onnx == file
    network = load_model([model / "fold_1" / "checkpoint_final.pth"]).network.eval()
    patch = torch.randn(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(5))
    session = onnxruntime.InferenceSession(str(file))
    (found,) = session.run(["logits"], {"image": patch.numpy()})
    with torch.inference_mode():
        expected = network(patch).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-3 * np.abs(expected).max())
    facts = {each.key: json.loads(each.value) for each in onnx.load(str(file)).metadata_props}
    assert facts["patch_size"] == [16, 16, 16]
    assert facts["labels"] == {"background": 0, "core": 1, "rim": 2}
    assert session.get_inputs()[0].shape == [1, 1, 16, 16, 16]


def test_a_file_that_differs_is_not_kept(model, tmp_path, monkeypatch) -> None:
    translated()
    monkeypatch.setattr(onnx_file, "TOLERANCE", -1.0)
    with pytest.raises(DataError, match="was not kept"):
        onnx_file.write_onnx(model, "0", tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()
