import json
import os

import pytest
import torch
from torch import nn

from pgnn_geo.boxes.model_file import load_adjuster, load_detector
from pgnn_geo.errors import InputError
from pgnn_geo.inference import Segmenter
from pgnn_geo.io.checkpoint import load_attention_model
from pgnn_geo.io.model_folder import (
    VERSIONS,
    load_tensors,
    model_digest,
    model_kind,
    read_model_folder,
    write_model_folder,
)
from pgnn_geo.labels.labeller import Labeller

READERS = {
    "segmenter": Segmenter.from_pretrained,
    "evidence model": Labeller.load,
    "attention model": load_attention_model,
    "weak detector": load_detector,
    "box adjuster": load_adjuster,
}
STATE = {"weight": torch.arange(6.0).view(2, 3).t(), "bias": torch.tensor(1, dtype=torch.int64)}


@pytest.mark.parametrize("kind", VERSIONS)
def test_every_kind_is_one_folder_and_comes_back(kind, tmp_path):
    folder = tmp_path / "model"
    write_model_folder(folder, kind, STATE, {"classes": ["cat"]}, card="# A card")
    assert sorted(os.listdir(folder)) == ["README.md", "config.json", "model.safetensors"]
    state, values = read_model_folder(folder, kind)
    assert values["classes"] == ["cat"] and state.keys() == STATE.keys()
    assert all(torch.equal(state[k], v) and state[k].dtype == v.dtype for k, v in STATE.items())
    assert model_kind(folder) == kind


@pytest.mark.parametrize("kind", VERSIONS)
def test_other_kinds_and_versions_are_refused_by_name(kind, tmp_path):
    folder = tmp_path / "model"
    other = next(name for name in VERSIONS if name != kind)
    write_model_folder(folder, other, STATE, {})
    with pytest.raises(InputError, match=f"{folder} is not an? {kind} .*'pgnn_geo {other}"):
        READERS[kind](folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "format": f"pgnn_geo {kind} 99"}))
    with pytest.raises(InputError, match=f"{kind} 99', want .* older versions have to be trained"):
        READERS[kind](folder)
    if kind != "segmenter":  # whose path may be an id on the Hub
        with pytest.raises(InputError, match=f"There is no model {tmp_path}/none"):
            READERS[kind](tmp_path / "none")


def test_the_digest_is_of_weights_and_values(tmp_path):
    digests = set()
    for number, (state, values) in enumerate(
        [(STATE, {"a": 1}), (STATE, {"a": 2}), ({"weight": STATE["weight"] + 1}, {"a": 1})]
    ):
        write_model_folder(tmp_path / str(number), "segmenter", state, values)
        digests.add(model_digest(tmp_path / str(number)))
    assert len(digests) == 3
    write_model_folder(tmp_path / "again", "segmenter", STATE, {"a": 1})
    assert model_digest(tmp_path / "again") in digests


def test_what_is_no_model_has_no_kind(tmp_path):
    (tmp_path / "config.json").write_text('{"flow": "frozen"}')
    assert model_kind(tmp_path) is None
    (tmp_path / "config.json").write_text("[")
    assert model_kind(tmp_path) is None
    assert model_kind(tmp_path / "config.json") is None


def test_tensors_fit_or_nothing_is_loaded(tmp_path):
    layer = nn.Linear(3, 2)
    before = layer.weight.clone()
    for state in (
        {"weight": torch.zeros(2, 3)},
        {"weight": torch.zeros(3, 2), "bias": torch.zeros(2)},
        {"weight": torch.zeros(2, 3).half(), "bias": torch.zeros(2)},
        {"weight": torch.zeros(2, 3), "bias": torch.zeros(2), "more": torch.zeros(1)},
    ):
        with pytest.raises(InputError, match="1 differ"):
            load_tensors(layer, state, tmp_path)
        assert torch.equal(layer.weight, before)
    with torch.device("meta"):
        empty = nn.Linear(3, 2)
    load_tensors(empty, layer.state_dict(), tmp_path)
    assert torch.equal(empty.weight, before)
