"""Tests of the measurement of training: what it counts, that the ceiling is the step's own products, that the script runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import small_model
import torch
from torch.utils.flop_counter import FlopCounterMode

from quantformer.autoencoder import Autoencoder
from quantformer_training.throughput import (
    ACTIVATION,
    FINETUNING,
    FORECAST,
    PRETRAINING,
    Products,
    made_sources,
    measure,
)

ROOT = Path(__file__).resolve().parents[1]


def operations(products: Products) -> int:
    return sum(2 * left.shape[0] * left.shape[1] * right.shape[1] for left, right in products.found)


def test_products_of_a_linear_layer_are_noted_forward_and_backward() -> None:
    layer, given = torch.nn.Linear(3, 5), torch.randn(4, 3, requires_grad=True)
    with Products() as products:
        made = layer(given)
        made.square().sum().backward()
    shapes = sorted((left.shape, right.shape) for left, right in products.found)
    assert shapes == [((4, 3), (3, 5)), ((4, 5), (5, 3)), ((5, 4), (4, 3))]
    assert torch.equal(made, layer(given))


def test_operations_noted_are_those_that_torch_counts_outside_attention() -> None:
    torch.manual_seed(0)
    network, trace = Autoencoder(small_model.CONFIG), torch.randn(6, 160)
    with Products() as products:
        network(trace).patches.square().mean().backward()
    with FlopCounterMode(display=False) as counter:
        network(trace).patches.square().mean().backward()
    counts = counter.get_flop_counts()["Global"]
    expected = sum(count for kind, count in counts.items() if kind in (torch.ops.aten.mm, torch.ops.aten.addmm))
    assert operations(products) == expected > 0


def test_ceiling_has_the_layouts_of_the_step() -> None:
    with Products() as products:
        torch.ones(4, 3) @ torch.ones(5, 3).T
        torch.ones(1, 3).expand(4, 3) @ torch.ones(3, 2)
    (left, right, room), (repeated, _, _) = products.alone(torch.device("cpu"))
    assert (left.stride(), right.stride(), room.shape) == ((3, 1), (1, 3), (4, 5))
    assert torch.isfinite(left).all()
    assert repeated.stride() == (3, 1)


def test_epoch_of_made_up_rows_repeats_none(tmp_path: Path) -> None:
    _, sources = made_sources(tmp_path, rows=1200)
    assert len(sources["real"]) >= 400
    assert len(sources["pseudo"]) >= 800
    drawn = sources["real"].draw(400, np.random.default_rng(0))
    assert len({*zip(drawn.moment.tolist(), drawn.neuron.tolist(), strict=True)}) == 400


def test_every_task_is_measured() -> None:
    found = {one.task: one for one in measure(small_model.CONFIG, batch=24, steps=2, epochs=2)}
    assert list(found) == [PRETRAINING, ACTIVATION, FORECAST, FINETUNING]
    for one in found.values():
        assert (one.device, one.precision, one.batch, one.epochs) == ("cpu", "float32", 24, 2)
        assert 0.0 < one.whole <= one.steps
        assert one.ceiling > 0.0
        assert one.share > 0.0
        assert one.cpu_share is not None
    # Nothing is drawn in pre-training; a row of both tasks is drawn for each of them.
    assert found[PRETRAINING].drawn is None
    drawn = found[ACTIVATION].drawn
    assert drawn is not None
    assert drawn > 0.0
    assert found[FORECAST].drawn == drawn
    assert found[FINETUNING].drawn == drawn / 2
    # A row passes through both networks: slower than either.
    assert found[FINETUNING].steps < min(found[ACTIVATION].steps, found[FORECAST].steps)
    assert found[FINETUNING].ceiling < min(found[ACTIVATION].ceiling, found[FORECAST].ceiling)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_script_writes_every_figure(tmp_path: Path, precision: str) -> None:
    out = tmp_path / "found.json"
    asked = ["--device", "cpu", "--preset", "small", "--batch", "32", "--epochs", "1", "--precision", precision]
    done = subprocess.run(
        [sys.executable, str(ROOT / "deploy" / "measure_training.py"), *asked, "--json", str(out)],
        capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Neuron-trials a second" in done.stdout
    assert FORECAST in done.stdout
    assert [one["precision"] for one in json.loads(out.read_text())] == [precision] * 4
