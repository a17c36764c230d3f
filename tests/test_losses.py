"""Tests of the losses against references in float64, term by term."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from quantformer.losses import activation_loss, code_loss, reconstruction_loss, shape_loss


def equation_2(made: np.ndarray, target: np.ndarray, masked: np.ndarray, active: np.ndarray, alpha: float, beta: float) -> float:
    total = 0.0
    for b in range(len(made)):
        error: dict[bool, list[float]] = {True: [], False: []}
        for p in range(made.shape[1]):
            error[bool(masked[b, p])] += [(x - y) ** 2 for x, y in zip(made[b, p], target[b, p], strict=True)]
        mse = {kind: sum(values) / len(values) if values else 0.0 for kind, values in error.items()}
        total += (1 + float(active[b]) * beta) * (alpha * mse[True] + mse[False])
    return total / len(made)


@pytest.mark.parametrize(("alpha", "beta"), [(2.0, 0.0), (2.0, 7.5), (1.0, 3.0)])
def test_reconstruction_loss_is_equation_2(alpha: float, beta: float) -> None:
    rng = np.random.default_rng(0)
    made, target = rng.normal(size=(6, 10, 16)), rng.normal(size=(6, 10, 16))
    masked, active = rng.random((6, 10)) < 0.3, np.array([True, False] * 3)
    masked[0], masked[1] = True, False
    found = reconstruction_loss(
        torch.from_numpy(made), torch.from_numpy(target),
        masked=torch.from_numpy(masked), active=torch.from_numpy(active), alpha=alpha, beta=beta,
    )  # fmt: skip
    assert float(found) == pytest.approx(equation_2(made, target, masked, active, alpha, beta), rel=1e-12)


def test_alpha_is_two_where_unsaid() -> None:
    made, target = torch.ones(1, 2, 4), torch.zeros(1, 2, 4)
    masked, active = torch.tensor([[True, False]]), torch.tensor([False])
    assert float(reconstruction_loss(made, target, masked=masked, active=active)) == 3.0


def test_code_loss_is_equation_4() -> None:
    rng = np.random.default_rng(1)
    logits, codes = rng.normal(size=(5, 10, 8)), rng.integers(0, 8, (5, 10))
    total = 0.0
    for b, p in np.ndindex(5, 10):
        probability = np.exp(logits[b, p]) / np.exp(logits[b, p]).sum()
        total -= np.log(probability[codes[b, p]])
    found = code_loss(torch.from_numpy(logits), torch.from_numpy(codes))
    assert float(found) == pytest.approx(total / 50, rel=1e-12)


def test_activation_loss_is_binary_cross_entropy() -> None:
    logit, active = np.array([-3.0, 0.5, 40.0, -40.0]), np.array([False, True, True, True])
    terms = [np.log1p(np.exp(-3.0)), np.log1p(np.exp(-0.5)), 0.0, 40.0]
    found = activation_loss(torch.from_numpy(logit), torch.from_numpy(active))
    assert float(found) == pytest.approx(np.mean(terms), rel=1e-9)


def test_shape_loss_is_one_minus_the_mean_correlation() -> None:
    rng = np.random.default_rng(2)
    forecast, response = rng.normal(size=(5, 64)), rng.normal(size=(5, 64))
    expected = 1.0 - np.mean([np.corrcoef(f, r)[0, 1] for f, r in zip(forecast, response, strict=True)])
    found = shape_loss(torch.from_numpy(forecast), torch.from_numpy(response), epsilon=0.0)
    assert float(found) == pytest.approx(expected, rel=1e-10)


def test_shape_loss_of_flat_traces_is_quiet() -> None:
    flat = torch.zeros(3, 64, requires_grad=True)
    loss = shape_loss(flat, torch.zeros(3, 64))
    torch.autograd.backward(loss)
    assert loss.item() == 1.0
    assert flat.grad is not None
    assert torch.isfinite(flat.grad).all()
