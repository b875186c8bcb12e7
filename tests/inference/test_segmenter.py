import hashlib
import json
import os
import pickle
import shutil

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from pgnn_geo.errors import InputError
from pgnn_geo.inference.segmenter import Segmenter
from pgnn_geo.io.ledger import SupervisionLedger
from pgnn_geo.metrics import ConfusionMatrix
from pgnn_geo.nn import DeepLabV2
from pgnn_geo.nn.photo_views import shrink

LEDGER = SupervisionLedger(tags="csv", weights="W", tuned_on_truth=("threshold",))
EXACT = {"precision": "32-true", "flip": False}


def build(side=None, metrics=None, **kwargs):
    torch.manual_seed(0)
    options = {"num_classes": 3, "weights": None, "hidden_channels": 16, **kwargs}
    network = DeepLabV2("vgg_tiny", **options)
    nn.init.normal_(network.head.branches[0][-1].weight)  # probabilities that differ
    network.backbone.mean.fill_(0.4)  # as pretrained weights have it: their own input range
    return Segmenter(network, ("cat", "dog", "cow"), LEDGER, metrics, side)


@pytest.fixture
def segmenter():
    return build()


@pytest.fixture
def image():
    generator = torch.Generator().manual_seed(1)
    small = torch.rand(3, 8, 10, generator=generator)[None]
    return F.interpolate(small, (61, 83), mode="bicubic").clamp(0, 1)[0].mul(255).byte()


def test_one_view_is_the_networks_own_prediction(segmenter, image):
    expected = segmenter.network.eval().predict(image[None] / 255)[0]
    found = segmenter.predict(image, **EXACT)
    assert found.shape == (4, 61, 83) and found.dtype == torch.float
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert torch.equal(segmenter.label(image, **EXACT).long(), found.argmax(0))
    expected = segmenter.network.predict(image[None] / 255, size=(30, 50))[0]
    torch.testing.assert_close(
        segmenter.predict(image, size=(30, 50), **EXACT), expected, rtol=0, atol=1e-5
    )


def test_scales_and_mirror_images_are_averaged(segmenter, image):
    network, expected = segmenter.network.eval(), 0
    for size in ((30, 42), (61, 83), (92, 124)):
        pixels = F.interpolate(
            image[None].float(), size, mode="bilinear", antialias=True, align_corners=False
        )
        pixels = pixels.round().clamp(0, 255) / 255
        expected = expected + network.predict(pixels, (61, 83))
        expected = expected + network.predict(pixels.flip(-1), (61, 83)).flip(-1)
    found = segmenter.predict(image, scales=(0.5, 1, 1.5), precision="32-true")
    # Resized pixels are whole numbers; some are rounded the other way.
    torch.testing.assert_close(found, expected[0] / 6, rtol=0, atol=5e-3)
    turned = segmenter.predict(image.flip(-1), precision="32-true")
    torch.testing.assert_close(
        turned.flip(-1), segmenter.predict(image, precision="32-true"), rtol=0, atol=1e-5
    )


def test_photos_are_shown_at_the_side_of_training(image):
    segmenter = build(side=40)
    seen = []
    segmenter.network.backbone.register_forward_hook(lambda m, x, y: seen.append([*x[0].shape]))
    assert segmenter.predict(image, scales=(1, 2), flip=False).shape == (4, 61, 83)
    assert seen == [[1, 3, 29, 40], [1, 3, 59, 80]]
    segmenter.network.eval()
    small = segmenter.network.predict(shrink(image, 40)[None] / 255, size=(61, 83))
    torch.testing.assert_close(segmenter.predict(image, **EXACT), small[0], rtol=0, atol=1e-5)


def test_large_photos_are_scaled_down_first(segmenter, image):
    large = F.interpolate(image[None], (610, 830))[0]
    expected = segmenter.predict(shrink(large, 83), **EXACT)
    found = segmenter.predict(large, max_side=83, **EXACT)
    assert found.shape == (4, 610, 830)
    expected = F.interpolate(expected[None], (610, 830), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_only_tagged_classes(segmenter, image):
    found = segmenter.predict(image, tags=torch.tensor([0.0, 1, 0]), **EXACT)
    everything = segmenter.predict(image, **EXACT)[[0, 2]]
    assert not found[[1, 3]].any()
    torch.testing.assert_close(found[[0, 2]], everything / everything.sum(0))
    labels = segmenter.label(image, tags=torch.tensor([0.0, 1, 0]), **EXACT)
    assert set(labels.unique().tolist()) <= {0, 2}


def test_training_mode_is_put_back(segmenter, image):
    segmenter.network.train()
    first = segmenter.predict(image)
    assert segmenter.network.training and not first.requires_grad
    assert torch.equal(first, segmenter.predict(image))  # no dropout


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (17, 16)])
def test_odd_photos(segmenter, size):
    assert segmenter.label(torch.zeros(3, *size, dtype=torch.uint8)).shape == size


def test_a_loaded_segmenter_answers_the_same(tmp_path, image):
    matrix = ConfusionMatrix(3, ("cat", "dog", "cow"))
    matrix.update(torch.tensor([[0, 1, 2]]), torch.tensor([[0, 1, 1]]))
    segmenter = build(side=70, metrics=matrix.compute().to_dict())
    segmenter.network.backbone.set_output_stride(16)
    assert segmenter.save_pretrained(tmp_path / "model") == tmp_path / "model"
    loaded = Segmenter.from_pretrained(str(tmp_path / "model"))
    assert torch.equal(loaded.predict(image), segmenter.predict(image))
    assert loaded.classes == ("cat", "dog", "cow") and loaded.ledger == LEDGER
    assert loaded.metrics == segmenter.metrics and loaded.side == 70
    assert not loaded.network.training
    assert loaded.network.backbone.output_stride == 16
    card = (tmp_path / "model" / "README.md").read_text()
    for line in ("| 2 | dog |", "| cat | 50.0 | 100.0 | 50.0 |", "- tags: csv", "threshold"):
        assert line in card


def test_channels_last_weights_are_saved(segmenter, tmp_path, image):
    segmenter.network.to(memory_format=torch.channels_last)
    segmenter.save_pretrained(tmp_path / "model")
    loaded = Segmenter.from_pretrained(tmp_path / "model")
    torch.testing.assert_close(loaded.predict(image), segmenter.predict(image))


def test_pretrained_batch_norms_stay_frozen(segmenter, tmp_path):
    segmenter.network.config["weights"] = "DEFAULT"
    segmenter.save_pretrained(tmp_path / "model")
    network = Segmenter.from_pretrained(tmp_path / "model").network.train()
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and not any(m.training or m.weight.requires_grad for m in norms)
    assert network.head.branches[0][0].weight.requires_grad


def test_saving_again_replaces_and_spares_other_files(segmenter, tmp_path):
    folder = segmenter.save_pretrained(tmp_path / "model")
    segmenter.metrics = {"miou": 0.25}
    segmenter.save_pretrained(folder)
    assert Segmenter.from_pretrained(folder).metrics == {"miou": 0.25}
    assert os.listdir(tmp_path) == ["model"]
    (folder / "diary.txt").touch()
    with pytest.raises(InputError, match="other files"):
        segmenter.save_pretrained(folder)
    segmenter.metrics = {"miou": object()}  # fails in the middle
    with pytest.raises(TypeError):
        segmenter.save_pretrained(tmp_path / "new")
    assert os.listdir(tmp_path) == ["model"]
    with pytest.raises(InputError, match="cannot be written"):
        segmenter.save_pretrained(folder / "diary.txt" / "model")


def damage_flipped_bit(folder):
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-5] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    return "is not the file that config.json describes"


def damage_cut_off(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-100])
    return "cannot be read as a segmenter"


def damage_missing_weights(folder):
    (folder / "model.safetensors").unlink()
    return "is not the whole folder of a segmenter"


def damage_no_config(folder):
    (folder / "config.json").unlink()
    return "is not the whole folder of a segmenter"


def damage_no_json(folder):
    (folder / "config.json").write_text("{")
    return "cannot be read as a segmenter"


def damage_no_utf8(folder):
    (folder / "config.json").write_bytes(b"\xff\xfe\x00")
    return "cannot be read as a segmenter"


def damage_foreign(folder):
    (folder / "config.json").write_text('{"architectures": ["ViT"]}')
    return "is not a segmenter of this version"


def damage_not_a_dictionary(folder):
    (folder / "config.json").write_text("[1, 2]")
    return "is not a segmenter of this version"


def change(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    config["network"].update(changes.pop("network", {}))
    config.update(changes)
    (folder / "config.json").write_text(json.dumps(config))


def damage_other_head(folder):
    change(folder, network={"head": "largefov", "dilations": [12]})
    return "do not fit the network of its config.json: 18 differ"


def damage_wider(folder):  # a million times the memory, were it to be allocated
    change(folder, network={"hidden_channels": 16_000_000})
    return r"torch.float32 \[16, 128, 3, 3\] there, torch.float32 \[16000000, 128, 3, 3\] wanted"


def damage_unknown_backbone(folder):
    change(folder, network={"backbone": "alexnet"})
    return "does not fit this version.*alexnet"


def damage_unknown_argument(folder):
    change(folder, network={"activation": "gelu"})
    return "does not fit this version.*activation"


def damage_classes(folder):
    change(folder, classes=["cat"])
    return "1 names for 3 classes"


def damage_ledger(folder):
    change(folder, supervision={"magic": 1})
    return "does not fit this version.*magic"


def damage_half_precision(folder):
    path = folder / "model.safetensors"
    save_file({k: v.half() for k, v in load_file(path).items()}, path)
    change(folder, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    return "torch.float16"


class Evil:
    def __reduce__(self):
        return print, ("code ran",)


def damage_pickle(folder):
    with open(folder / "model.safetensors", "wb") as handle:
        pickle.dump(Evil(), handle)
    return "cannot be read as a segmenter"


def damage_torch_save(folder):
    torch.save({"weights": torch.zeros(9), "evil": Evil()}, folder / "model.safetensors")
    return "cannot be read as a segmenter"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return build().save_pretrained(tmp_path_factory.mktemp("saved") / "model")


@pytest.mark.parametrize("name", sorted(n for n in globals() if n.startswith("damage_")))
def test_bad_folders(saved, tmp_path, capsys, name):
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    with pytest.raises(InputError, match=globals()[name](folder)) as error:
        Segmenter.from_pretrained(folder)
    assert str(folder) in str(error.value)
    assert "code ran" not in capsys.readouterr().out


def test_no_folder(tmp_path):
    with pytest.raises(InputError, match="no segmenter folder"):
        Segmenter.from_pretrained(tmp_path / "nothing")


def test_bad_arguments(segmenter, image):
    with pytest.raises(InputError, match="3 classes, but 2 names"):
        Segmenter(segmenter.network, ("cat", "dog"), LEDGER)
    with pytest.raises(InputError, match="'side' must be positive"):
        Segmenter(segmenter.network, segmenter.classes, LEDGER, side=0)
    for wrong in (image.float(), image[0], image[None], image[:, :0]):
        with pytest.raises(InputError, match="want a photo"):
            segmenter.predict(wrong)
    for scales in ((), (1, 0)):
        with pytest.raises(InputError, match="'scales'"):
            segmenter.predict(image, scales=scales)
    with pytest.raises(InputError, match="'max_side'"):
        segmenter.predict(image, max_side=0)
