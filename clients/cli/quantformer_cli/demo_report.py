"""The demo as a report: what happened, forecasts beside what followed, and every score beside every baseline."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np

from quantformer_cli.demo_summary import Check, Outcome, machine, percentiles, versions
from quantformer_client.wire import Decision
from quantformer_training.comparison import Comparison
from quantformer_training.comparison_tables import (
    activation_table,
    compatible_table,
    difference_cells,
    forecast_table,
    headline_table,
    lead_table,
    number,
)
from quantformer_training.figures import (
    ForecastPanel,
    forecast_panels,
    latency_histogram,
    reliability_diagram,
    skill_by_lead,
)
from quantformer_training.fit import Fitted
from quantformer_training.report import Facts, Picture, Report, Section, Table, Text

#: Panels of forecasts: so many after which the neuron was active, and as many after which it was not.
PANELS_EACH = 4

_ORIGIN = {
    "simulated": "The data are simulated: no animal was measured, and no number here says anything about one.",
    "semi-synthetic": "The data are semi-synthetic: measured spikes seen through a simulated indicator and microscope.",
    "measured": "The data were measured in an animal.",
}


def build_report(outcome: Outcome, fitted: Fitted, *, checks: list[Check]) -> Report:
    """The whole report."""
    streamed, plan, scores = outcome.streamed, outcome.plan, outcome.scores
    failed = [check for check in checks if not check.passed]
    if failed:
        banner = "Not everything happened: " + "; ".join(f"{check.name} ({check.found})" for check in failed)
    else:
        banner = (
            f"Everything happened: {outcome.frames_received} frames were streamed over ZeroMQ and received, "
            f"{len(streamed.answers)} of {len(streamed.trials)} announced onsets were answered ({outcome.late} late), the "
            "trigger decided, and the answers are those of the trained model offline."
        )
    latency = percentiles(streamed.latency_ms)
    within = scores.streamed.differences["auroc_within_neuron"]
    tiles = [
        ("frames sent", str(streamed.played.sent)),
        ("frames lost", str(streamed.played.sent - outcome.frames_received)),
        ("onsets answered", f"{len(streamed.answers)} of {len(streamed.trials)}"),
        ("median latency", f"{number(latency['p50'], 1)} ms"),
        ("99 % latency", f"{number(latency['p99'], 1)} ms"),
        ("triggers fired, dry run", str(streamed.trigger.fired)),
        ("AUROC within neuron", number(within.candidate)),
        ("best simple baseline", number(within.reference)),
    ]
    return Report(
        title="QuantFormer demo",
        subtitle=f"{plan.data}; {plan.chosen}. {_ORIGIN[plan.recording.provenance.origin]}",
        banner=banner,
        failed=bool(failed),
        tiles=tiles,
        sections=[
            Section(title="Against the simple baselines", parts=_headline(outcome)),
            Section(title="Forecast against what then happened", parts=[_panels(outcome, fitted)]),
            Section(title="Are the probabilities what they say?", parts=[_reliability(outcome)]),
            Section(title="Skill by lead", parts=_leads(outcome)),
            Section(title="Latency", parts=_latency(outcome)),
            Section(title="Trigger", parts=_trigger(outcome, fitted)),
            Section(title="Every score, every baseline", parts=_everything(scores.held_out, scores.pseudo)),
            Section(title="How this was made", parts=_lineage(outcome, checks)),
        ],
    )


def _headline(outcome: Outcome) -> list[Text | Facts | Table | Picture]:
    scores, whole = outcome.scores, outcome.scores.held_out
    parts: list[Text | Facts | Table | Picture] = [
        headline_table(scores.streamed, caption="Answers received over the wire, to the streamed onsets")
    ]
    if whole.trials > scores.streamed.trials:
        caption = f"The same model offline, at all {whole.trials} held-out onsets"
        parts.append(headline_table(whole, caption=caption))
    parts.append(
        headline_table(scores.pseudo, caption="Pseudo-onsets: the same questions at moments at which nothing begins")
    )
    gain = whole.stimulus_gain
    if gain is not None:
        delta, interval, verdict, _ = difference_cells(gain)
        parts.append(
            Text(
                text=f"Told the stimulus, the model's log-loss at the held-out onsets changes by {delta} nats (95 % interval "
                f"{interval}: {verdict}) against the same model denied it. What pseudo-onsets match is no forecast of a "
                "response to the stimulus."
            )
        )
    return parts


def _panels(outcome: Outcome, fitted: Fitted) -> Picture:
    """Panels drawn by lot, half of them active."""
    answers = outcome.streamed.answers
    test = fitted.real["test"]
    trials = test.select(np.flatnonzero(np.isin(test.moments.trial, list(answers))))
    rng = np.random.default_rng(outcome.seed)
    chosen: list[tuple[int, int]] = []
    for wanted in (True, False):
        pairs = np.argwhere(trials.valid & (trials.active == wanted))
        rows = rng.choice(len(pairs), min(PANELS_EACH, len(pairs)), replace=False)
        chosen += [(int(moment), int(neuron)) for moment, neuron in pairs[np.sort(rows)]]
    panels = []
    for moment, neuron in chosen:
        answer = answers[int(trials.moments.trial[moment])].answer
        assert answer.response is not None
        assert answer.low is not None
        assert answer.high is not None
        panels.append(
            ForecastPanel(
                title=f"{fitted.vocabulary.neuron_ids[neuron]}, {_stimulus(trials.moments.stimulus_id[moment])}",
                before=trials.baseline[moment, neuron],
                happened=trials.response[moment, neuron],
                forecast=answer.response[0, neuron],
                low=answer.low[0, neuron],
                high=answer.high[0, neuron],
                probability=float(answer.probability[0, neuron]),
                active=bool(trials.active[moment, neuron]),
            )
        )
    recipe = fitted.reader.recipe
    level = fitted.calibrated.interval.level
    return Picture(
        svg=forecast_panels(panels, rate_hz=recipe.rate_hz, level=level),
        alt=f"{len(panels)} panels of dF/F over time: baseline, forecast with interval, and the response that followed",
        caption=f"Forecasts as they were received over the wire. Drawn by lot (seed {outcome.seed}) from all streamed neuron-"
        f"trials, {sum(panel.active for panel in panels)} active and {sum(not panel.active for panel in panels)} not; the "
        f"draw does not look at the forecast. The band is to hold {100 * level:.0f} % of the frames that "
        f"follow; over all streamed neuron-trials it held {100 * outcome.scores.coverage:.0f} %. p is the probability told "
        "before the onset.",
    )


def _stimulus(label: str) -> str:
    return label.rpartition("/")[2]


def _reliability(outcome: Outcome) -> Picture:
    whole = outcome.scores.held_out
    model = whole.activation["model"]
    return Picture(
        svg=reliability_diagram(whole.reliability),
        alt="Observed fraction active against predicted probability, with the diagonal of perfect calibration",
        caption=f"All {whole.trials} held-out onsets. Calibration slope {number(model.calibration_slope, 2)} and intercept "
        f"{number(model.calibration_intercept, 2)} (1 and 0 are ideal), expected calibration error "
        f"{number(model.calibration_error)}. Ten bins of about equally many neuron-trials; bars are 95 % Wilson intervals, "
        "too narrow where the neurons of a trial share its luck.",
    )


def _leads(outcome: Outcome) -> list[Text | Facts | Table | Picture]:
    leads = outcome.scores.leads
    return [
        Text(
            text="Frames reach the engine late, so a forecast has to do without the last ones; and much of what the last "
            "frames tell is a transient that is already under way. Skill is therefore shown as they are withheld, from the "
            "model and from the baselines alike."
        ),
        Picture(
            svg=skill_by_lead(leads, rate_hz=outcome.plan.recording.rate_hz),
            alt="AUROC within neuron and log-loss skill against the number of last frames withheld, 0 to 10",
            caption=f"All {outcome.scores.held_out.trials} held-out onsets, offline.",
        ),
        lead_table(leads, caption="The same in numbers"),
    ]


def _latency(outcome: Outcome) -> list[Text | Facts | Table | Picture]:
    streamed = outcome.streamed
    found = percentiles(streamed.latency_ms)
    measured = [
        ("last frame before the onset sent, to forecast heard by the subscriber", streamed.latency_ms),
        ("in the engine: window ready, to answer published", streamed.engine_ms),
        ("standing question: frame sent, to answer heard by the subscriber", streamed.standing_ms),
    ]
    leads = ", ".join(f"{lead} for {count} onsets" for lead, count in outcome.leads.items())
    marks = {"median": found["p50"], "99 %": found["p99"], "max": found["max"]} if len(streamed.latency_ms) else {}
    return [
        Picture(
            svg=latency_histogram(streamed.latency_ms, marks=marks, what="last frame sent to forecast heard"),
            alt="Histogram of the latency of the answers to onsets in milliseconds",
            caption="Both stamps are taken in this one program, so that what is measured holds the way there and back. Where "
            "the deadline came before the last frame, time is taken from the deadline on. Frames that were not there yet: "
            f"{leads}. {outcome.late} answers came after their deadline.",
        ),
        Table(
            caption="Latency, ms",
            columns=("", "answers", "median", "99 %", "max"),
            rows=[
                (name, str(len(values)), *(number(percentiles(values)[key], 2) for key in ("p50", "p99", "max")))
                for name, values in measured
            ],
        ),
    ]


def _trigger(outcome: Outcome, fitted: Fitted) -> list[Text | Facts | Table | Picture]:
    trigger, decisions = outcome.streamed.trigger, outcome.streamed.decisions
    reasons = [("fired (dry run)", trigger.fired), *sorted(trigger.refused.items())]
    fired = [one for one in decisions if one.fired]
    parts: list[Text | Facts | Table | Picture] = [
        Text(
            text="Two rules were set, armed with a lease that the controller's heartbeats renewed, and disarmed at the end: "
            + "; ".join(_rule(rule.rule, len(rule.rois), rule.at_least, rule.threshold) for rule in outcome.rules)
            + ". The output is a dry run: nothing was driven, and this is no laser-safety interlock."
        ),
        Table(
            caption="Decisions, by reason",
            columns=("reason", "decisions"),
            rows=[(reason.replace("_", " "), str(count)) for reason, count in reasons],
        ),
    ]
    if fired:
        rows = [
            (str(one.onset_frame), one.rule, number(one.value, 2), ", ".join(one.rois), _then(one, fitted))
            for one in fired[:12]
        ]
        parts.append(
            Table(
                caption=f"What fired{'' if len(fired) <= 12 else f', the first 12 of {len(fired)}'}",
                columns=("onset frame", "rule", "probability", "neurons at or above the threshold", "of them then active"),
                rows=rows,
            )
        )
    return parts


def _then(decision: Decision, fitted: Fitted) -> str:
    """How many of the neurons that made a rule fire were active; a dash for a moment at which no stimulus began."""
    test = fitted.real["test"]
    found = np.flatnonzero(test.moments.frame == decision.onset_frame)
    if not len(found):
        return "–"
    columns = [fitted.vocabulary.neuron_ids.index(name) for name in decision.rois]
    return f"{int(test.active[found[0], columns].sum())} of {len(columns)}"


def _rule(name: str, rois: int, at_least: int, threshold: float) -> str:
    neurons = "one neuron" if rois == 1 else f"at least {at_least} of {rois} neurons"
    return f"“{name}” fires when {neurons} reach{'es' if rois == 1 else ''} a probability of {threshold:.2f}"


def _everything(whole: Comparison, pseudo: Comparison) -> list[Text | Facts | Table | Picture]:
    return [
        activation_table(whole, caption="Activation at the held-out onsets"),
        forecast_table(whole, caption="Forecast traces at the held-out onsets"),
        activation_table(pseudo, caption="Activation at pseudo-onsets"),
        forecast_table(pseudo, caption="Forecast traces at pseudo-onsets"),
        compatible_table(whole, caption="Paper-compatible scores at the held-out onsets"),
    ]


def _lineage(outcome: Outcome, checks: list[Check]) -> list[Text | Facts | Table | Picture]:
    provenance = outcome.plan.recording.provenance
    facts = [
        ("command", outcome.command),
        ("when", datetime.now(UTC).isoformat(timespec="seconds")),
        ("data", f"{provenance.origin}: {provenance.source}"),
        *((name, value) for name, value in provenance.facts.items()),
        ("seed of training", str(outcome.seed)),
        ("training budget", outcome.budget),
        ("bundle, SHA-256", outcome.bundle.hash),
        ("bundle", str(outcome.bundle.path)),
        ("execution provider", outcome.streamed.status.provider),
        *((name, str(value)) for name, value in machine().items()),
        ("versions", ", ".join(f"{name} {value}" for name, value in versions().items())),
        ("seconds", ", ".join(f"{name} {value:.1f}" for name, value in outcome.seconds.items())),
    ]
    return [
        Table(
            caption="What had to happen",
            columns=("", "", "found"),
            rows=[(check.name, "yes" if check.passed else "NO", check.found) for check in checks],
        ),
        Facts(facts=facts),
    ]
