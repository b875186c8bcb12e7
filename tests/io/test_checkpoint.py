import pytest
import torch

from pgnn_geo.errors import InputError
from pgnn_geo.io.checkpoint import load_attention_model, save_attention_model
from pgnn_geo.io.ledger import SupervisionLedger
from pgnn_geo.nn import PGNN

LEDGER = SupervisionLedger(tags="csv", weights="W")


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = PGNN("vgg_tiny", 3, weights=None, output_stride=8, heads=4).eval()
    # As pretrained weights have it: their own input range, features scaled by a constant.
    model.backbone.mean.fill_(0.4)
    model.backbone.std.fill_(1 / 255)
    model.backbone.scale.fill_(0.05)
    return model


def test_a_loaded_model_answers_the_same(model, tmp_path):
    images = torch.rand(3, 3, 64, 64)
    said = {"labels": {"background": 0.3}}
    save_attention_model(tmp_path / "model", model, ("a", "b", "c"), LEDGER, said)
    loaded, classes, ledger, labelling = load_attention_model(tmp_path / "model")
    assert labelling == said
    assert classes == ("a", "b", "c") and ledger == LEDGER
    assert loaded.config == model.config and not loaded.training
    torch.testing.assert_close(loaded(images).scores, model(images).scores, rtol=0, atol=0)


def test_pretrained_batch_norms_stay_frozen(model, tmp_path):
    model.config["weights"] = "IMAGENET1K_V2"
    save_attention_model(tmp_path / "model", model, ("a", "b", "c"), LEDGER)
    loaded = load_attention_model(tmp_path / "model").model.train()
    norms = [m for m in loaded.backbone.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms and not any(m.training for m in norms)


def test_what_training_set_comes_back(model, tmp_path):
    model.set_node_classes("maps")
    save_attention_model(tmp_path / "model", model, ("a", "b", "c"), LEDGER)
    assert load_attention_model(tmp_path / "model").model.node_classes == "maps"


def test_a_file_of_an_older_version_is_read(model, tmp_path):
    path, images = tmp_path / "model.pt", torch.rand(3, 3, 64, 64)
    content = {"format": "pgnn_geo attention model 2", "config": model.config}
    content |= {"ledger": LEDGER.to_dict(), "classes": ["a", "b", "c"], "labelling": {"x": 1}}
    torch.save({**content, "state_dict": model.state_dict()}, path)
    loaded, classes, ledger, labelling = load_attention_model(path)
    assert (classes, ledger, labelling) == (("a", "b", "c"), LEDGER, {"x": 1})
    torch.testing.assert_close(loaded(images).scores, model(images).scores, rtol=0, atol=0)
    for broken in ({"config": {}}, {"state_dict": {}}, {"classes": None}):
        torch.save({**content, "state_dict": model.state_dict(), **broken}, path)
        with pytest.raises(InputError, match=f"{path} (does not fit this|do not fit the network)"):
            load_attention_model(path)


def test_bad_files(model, tmp_path):
    path = tmp_path / "model"
    with pytest.raises(InputError, match=r"There is no model .*want the folder of an attention"):
        load_attention_model(path)
    save_attention_model(path, model, ("a", "b", "c"), LEDGER)
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InputError, match="cannot be read as an attention model"):
        load_attention_model(path)
    file = tmp_path / "model.pt"
    torch.save({"format": "pgnn_geo attention model 1"}, file)
    with pytest.raises(InputError, match="older versions have to be trained anew"):
        load_attention_model(file)
    torch.save({"format": "other"}, file)
    with pytest.raises(InputError, match="not an attention model"):
        load_attention_model(file)


class Evil:
    def __reduce__(self):
        return print, ("code ran",)


def test_nothing_but_tensors_is_unpickled(tmp_path, capsys):
    torch.save(Evil(), tmp_path / "model.pt")
    with pytest.raises(InputError):
        load_attention_model(tmp_path / "model.pt")
    assert "code ran" not in capsys.readouterr().out
