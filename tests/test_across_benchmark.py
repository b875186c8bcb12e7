"""`benchmarks/across.py` on drawn photos, and its graphs against plain loops."""

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from scripts import BENCHMARKS, run_benchmark

TINY = """
features: {size: 64}
evidence: {positions: 500, iterations: 3, classifier_rounds: 1, prototype_rounds: 1}
labels: {background: 0.5}
"""


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("_across_graphs")


def drawn(graphs: ModuleType) -> object:
    torch.manual_seed(0)
    units = torch.nn.functional.normalize(torch.randn(6, 9, 8), dim=2)
    tags = torch.tensor([[1, 0], [1, 1], [0, 1], [1, 0], [0, 1], [1, 1]]).bool()
    sure = torch.where(tags[:, :1], 1, 2).expand(-1, 9) * torch.randint(-1, 2, (6, 9)).abs()
    fitted = torch.tensor([1, 1, 1, 1, 0, 0]).bool()
    return graphs.Draw(units, torch.randn(6, 9, 3), sure, tags, fitted, seed=3)


def test_pairs_with_the_same_base(shapes_root: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    command = [f"--root={shapes_root}", f"--recipe={tmp_path / 'tiny.yaml'}", "--seeds=2"]
    command += ["--split=val", "--also", "train", "--backbone=vgg_tiny", "--directions=16"]
    command += ["--steps=2", f"--out={tmp_path}", "--rows", "gate", "edges", "layer"]
    run_benchmark("across", *command)
    found = json.loads((tmp_path / "across.json").read_text())
    assert len(found) == 2 * 4 and all(len(cell["miou"]) == 7 for cell in found.values())
    assert found["base; 0"]["miou"] != found["base; 1"]["miou"]  # other photos
    rows = [line.split("|") for line in (tmp_path / "across.md").read_text().splitlines()]
    means = {row[1].strip(): row for row in rows[2:]}
    best = max(range(7), key=lambda i: sum(found[f"base; {s}"]["miou"][i] for s in range(2)))
    base = sum(found[f"base; {s}"]["miou"][best] for s in range(2)) / 2
    assert float(means["base"][2]) == pytest.approx(base, abs=0.06)
    run_benchmark("across", *command)  # nothing is left to do
    assert json.loads((tmp_path / "across.json").read_text()) == found


@pytest.mark.parametrize(
    "name, options",
    [
        ("Linear", {}),
        ("Gate", {}),
        ("Gate", {"partners": "own"}),
        ("Memory", {}),
        ("Edges", {}),
        ("Layer", {}),
        ("Layer", {"normalize": "sinkhorn"}),
        ("Layer", {"partners": "own"}),
        ("Layer", {"normalize": "none"}),
    ],
)
def test_nothing_is_added_before_training(graphs: ModuleType, name: str, options: dict) -> None:
    draw = drawn(graphs)
    graph = getattr(graphs, name)(draw, **options).eval()
    nodes = torch.arange(9).expand(6, -1)
    scores, _ = graph(torch.arange(6), nodes)
    torch.testing.assert_close(scores, draw.scores)
    scores.square().sum().backward()  # the way out is open
    assert any(p.grad is not None and p.grad.any() for p in graph.parameters())


@pytest.mark.parametrize("partners", ["others", "own"])
def test_messages_come_from_whom_they_should(graphs: ModuleType, partners: str) -> None:
    draw = drawn(graphs)
    gate = graphs.Gate(draw, partners, weight=1.0).eval()
    torch.nn.init.normal_(gate.second)
    found = gate(torch.arange(6), torch.arange(9).expand(6, -1))[1]
    change = gate.first @ gate.second
    for photo in range(6):
        heard = [i for i, owner in enumerate(gate.owner.tolist()) if (owner == photo) == gate.own]
        for node in range(9) if heard else ():
            u, total = draw.units[photo, node], torch.zeros(3)
            for i in heard:
                k = gate.keys[i]
                weight = torch.exp(14 * (u @ k - 1)) * torch.sigmoid(2 + 8 * u @ change @ k)
                total[gate.label[i]] += weight * gate.bias[gate.label[i]].exp()
            seen = total > 0
            expected = total / total.sum()
            torch.testing.assert_close(
                found[photo, node].exp()[seen], expected[seen], atol=1e-4, rtol=1e-3
            )


def test_only_labels_of_fitted_photos_are_messages(graphs: ModuleType) -> None:
    draw = drawn(graphs)
    assert set(graphs.Gate(draw).owner.tolist()) <= {0, 1, 2, 3}
    assert {4, 5} & set(graphs.Gate(draw, "own").owner.tolist())
    assert (draw.labels[4:] == -1).all() and torch.equal(draw.labels[:4], draw.sure[:4])
