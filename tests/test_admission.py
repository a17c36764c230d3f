"""Tests of what a form of lower precision must keep to be admitted."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from small_fit import fitted, packed

from quantformer.bundle import Vectors, load_bundle
from quantformer.errors import BundleError
from quantformer_training import admission, packing
from quantformer_training.admission import MOST_LOST, _Answers, _answers, _asked, judge, judged_forms
from quantformer_training.calibrate import probability
from quantformer_training.examples import Examples
from quantformer_training.packing import vectors_of, write_fitted


@pytest.fixture(scope="module")
def vectors() -> Vectors:
    return vectors_of(fitted())


@pytest.fixture(scope="module")
def graph() -> bytes:
    return packed().graph


@pytest.fixture(scope="module")
def judged(vectors: Vectors, graph: bytes) -> tuple[Examples, _Answers]:
    """Validation rows, and what the float32 graph answers."""
    rows, inputs = _asked(fitted(), vectors, part="validation", most=2000)
    return rows, _answers(graph, inputs)


def test_the_rows_are_asked_as_training_validates(judged: tuple[Examples, _Answers]) -> None:
    rows, found = judged
    expected = fitted().model.predict(rows)
    np.testing.assert_allclose(found.logit, expected.logit, atol=1e-4)
    np.testing.assert_allclose(found.response, expected.response, atol=1e-4)


def test_both_forms_of_a_fit_are_judged_by_what_they_lose(vectors: Vectors, graph: bytes) -> None:
    found = judged_forms(fitted(), vectors, graph)
    assert set(found) == {"int8", "float16"}
    for one in found.values():
        scores = one.form.log_loss, one.form.mse
        assert all(score.lost <= score.at_most for score in scores)
        # A few dozen rows may leave it open whether int8 keeps within the limit.
        assert (one.form.refused == "") == all(score.at_most <= MOST_LOST * score.float32 for score in scores)
        assert one.graph != graph
    assert found["float16"].form.refused == ""
    # Seen to fail: the same graph for both.
    assert 0 < found["float16"].form.agreement.logit < found["int8"].form.agreement.logit


def test_the_scores_are_those_of_validation(judged: tuple[Examples, _Answers]) -> None:
    rows, answers = judged
    form = judge(answers, answers, rows=rows, fitted=fitted())
    made, active = probability(answers.logit, fitted().calibrated.calibration), rows.active.numpy()
    expected = -np.log(np.where(active, made, 1 - made)).mean()
    assert form.log_loss.float32 == pytest.approx(expected, rel=1e-6)
    assert form.mse.float32 == pytest.approx(np.square(answers.response - rows.response.numpy()).mean(), rel=1e-5)
    assert (form.log_loss.lost, form.mse.lost, form.agreement.logit, form.refused) == (0.0, 0.0, 0.0, "")
    assert form.agreement.rows == len(rows)


@pytest.mark.parametrize(
    ("harmed", "reason"),
    [("logit", r"^log_loss .* more, at most .*; allowed is"), ("response", r"^mse .* more, at most")],
)
def test_a_form_that_loses_skill_is_refused_with_the_figures(
    judged: tuple[Examples, _Answers], harmed: str, reason: str
) -> None:
    rows, expected = judged
    right = getattr(expected, harmed)
    noise = np.random.default_rng(0).normal(0, 3 * right.std(), right.shape).astype(np.float32)
    form = judge(_Answers(**{**vars(expected), harmed: right + noise}), expected, rows=rows, fitted=fitted())
    assert pytest.approx(np.abs(noise).max(), rel=1e-4) == getattr(form.agreement, harmed)
    assert re.search(reason, form.refused), form.refused


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("harmed", ["logit", "response", "spread"])
def test_one_answer_that_is_not_finite_refuses_a_form(
    judged: tuple[Examples, _Answers], harmed: str, value: float
) -> None:
    rows, expected = judged
    harmed_array = getattr(expected, harmed).copy()
    harmed_array.flat[3] = value
    form = judge(_Answers(**{**vars(expected), harmed: harmed_array}), expected, rows=rows, fitted=fitted())
    assert form.refused.startswith("answers that are not finite")
    assert np.isfinite([form.mse.at_most, form.log_loss.at_most, form.agreement.spread]).all()


def test_what_is_not_admitted_is_not_in_the_bundle_but_its_reason_is(
    graph: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "MOST_LOST", -1.0)
    monkeypatch.setattr(
        packing, "export_graph", lambda _: graph
    )  # that of this very fit: exporting again takes ten seconds
    bundle = write_fitted(fitted(), tmp_path / "bundle")
    assert sorted(file.name for file in bundle.path.iterdir()) == ["manifest.json", "model.onnx", "vectors.safetensors"]
    assert dict(bundle.forms) == {}
    assert set(bundle.manifest.forms) == {"int8", "float16"}
    with pytest.raises(BundleError, match="no int8 graph; it was not admitted: log_loss"):
        load_bundle(bundle.path).in_precision("int8")
