"""Which forms of lower precision a bundle may carry: made from training rows, judged by what they lose on validation rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from quantformer.bundle import Vectors
from quantformer.manifest import Form, FormName, Parity, SkillLost
from quantformer.tokens import UNKNOWN
from quantformer_training.bootstrap import PairedDifference, compare
from quantformer_training.calibrate import probability
from quantformer_training.examples import Examples
from quantformer_training.export import OUTPUTS, GraphInputs
from quantformer_training.finetune import VALIDATION_LEADS
from quantformer_training.fit import Fitted
from quantformer_training.float16 import float16_graph
from quantformer_training.int8 import int8_graph
from quantformer_training.loop import in_batches
from quantformer_training.resampled_metrics import ACTIVATION_METRICS, FORECAST_METRICS

#: A form may lose this share of the float32 graph's log-loss and of its squared error, at the upper end of the interval.
MOST_LOST = 0.005
#: Rows at each lead, at most: of training for the ranges of int8, of validation to judge by. Asked so many at a time.
CALIBRATION_ROWS, JUDGED_ROWS, BATCH = 250, 2000, 64
#: An answer that is not finite counts as this.
_ABSURD = 1e6


@dataclass(frozen=True, kw_only=True, eq=False)
class Judged:
    """A form's graph and what is known of it; the graph belongs into the bundle if ``form.refused`` is empty."""

    graph: bytes
    form: Form


@dataclass(frozen=True, kw_only=True, eq=False)
class _Answers:
    logit: NDArray[np.float32]
    response: NDArray[np.float32]
    spread: NDArray[np.float32]

    @property
    def finite(self) -> bool:
        return all(bool(np.isfinite(array).all()) for array in vars(self).values())


def judged_forms(fitted: Fitted, vectors: Vectors, graph: bytes) -> dict[FormName, Judged]:
    """Every form of the float32 ``graph``, judged on the CPU. A refit has learned from the validation rows too: there the
    scores flatter both graphs alike.
    """
    d = fitted.pretrained.config.d
    _, calibration = _asked(fitted, vectors, part="train", most=CALIBRATION_ROWS)
    rows, inputs = _asked(fitted, vectors, part="validation", most=JUDGED_ROWS)
    expected = _answers(graph, inputs)
    made: dict[FormName, bytes] = {
        "int8": int8_graph(graph, d=d, calibration=calibration),
        "float16": float16_graph(fitted.model.forecaster),
    }
    return {
        name: Judged(graph=form, form=judge(_answers(form, inputs), expected, rows=rows, fitted=fitted))
        for name, form in made.items()
    }


def judge(found: _Answers, expected: _Answers, *, rows: Examples, fitted: Fitted) -> Form:
    """What a form that answers ``found`` loses against the float32 graph's ``expected`` on these rows."""
    whole = _Answers(**{name: np.nan_to_num(a, nan=_ABSURD, posinf=_ABSURD, neginf=-_ABSURD) for name, a in vars(found).items()})
    trial, neuron = rows.moment.numpy(), rows.neuron.numpy()
    sure, were = (probability(one.logit, fitted.calibrated.calibration) for one in (whole, expected))
    log_loss = compare(
        sure, {"float32": were}, truth=rows.active.numpy(), trial=trial, neuron=neuron,
        metrics={"log_loss": ACTIVATION_METRICS["log_loss"]},
    )["log_loss"]  # fmt: skip
    mse = compare(
        whole.response, {"float32": expected.response}, truth=rows.response.numpy(), trial=trial, neuron=neuron,
        metrics={"mse": FORECAST_METRICS["mse"]},
    )["mse"]  # fmt: skip
    off = {name: float(np.abs(getattr(whole, name) - getattr(expected, name)).max()) for name in OUTPUTS}
    reasons = [] if found.finite else ["answers that are not finite"]
    for one in (log_loss, mse):
        allowed = MOST_LOST * one.reference
        if not one.high <= allowed:
            reasons.append(f"{one.metric} {one.difference:.2g} more, at most {one.high:.2g}; allowed is {allowed:.2g}")
    return Form(
        log_loss=_lost(log_loss),
        mse=_lost(mse),
        agreement=Parity(rows=len(rows), provider="CPUExecutionProvider", **off),
        refused="; ".join(reasons),
    )


def _lost(one: PairedDifference) -> SkillLost:
    return SkillLost(float32=one.reference, lost=one.difference, at_most=one.high)


def _asked(fitted: Fitted, vectors: Vectors, *, part: str, most: int) -> tuple[Examples, list[GraphInputs]]:
    """Real onsets of a part with no frame and with five withheld, as rows and as the graph is asked."""
    trials = fitted.real[part]
    source, vocabulary, moments = fitted.source(trials), fitted.vocabulary, trials.moments
    rows = Examples.joined([source.at_lead(lead, most=most) for lead in VALIDATION_LEADS])
    ids = (None if row == UNKNOWN else int(row) for row in vocabulary.id_rows(moments))
    described = zip(moments.category, moments.features, ids, strict=True)
    stimulus = np.stack(
        [
            vectors.of_stimulus(vocabulary.recipe, category=category, features=features, id_row=row)
            for category, features, row in described
        ]
    )
    scale = np.float32(fitted.pretrained.signal_scale)

    def inputs(one: Examples) -> GraphInputs:
        return GraphInputs(
            baseline=one.baseline.numpy() * scale,
            level=one.level.numpy(),
            neuron=vectors.of_neurons(one.neuron.numpy()),
            stimulus=stimulus,
            row_neuron=np.arange(len(one)),
            row_stimulus=one.moment.numpy(),
        )

    return rows, [inputs(rows.select(index)) for index in in_batches(torch.arange(len(rows)), BATCH)]


def _answers(graph: bytes, inputs: Sequence[GraphInputs]) -> _Answers:
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    parts = [session.run(list(OUTPUTS), one.named()) for one in inputs]
    return _Answers(**{name: np.concatenate(found) for name, found in zip(OUTPUTS, zip(*parts, strict=True), strict=True)})
