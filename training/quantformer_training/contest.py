"""Every model of a study on one run: the same trials, budget and scores for all of them (docs/training.md)."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from quantformer.errors import RecordingError, SignalError, UsageError
from quantformer.labels import Definition, LabelRule, label_frames
from quantformer.trace_metrics import pearson_rows
from quantformer_training.accelerator import Accelerator, one_process
from quantformer_training.baselines import ACTIVATION_BASELINES, FORECAST_BASELINES, POPULATION_BASELINES
from quantformer_training.calibrate import calibrate, probability
from quantformer_training.competitors import TrainedCompetitor, train_network
from quantformer_training.effort import Effort
from quantformer_training.explain.chosen import shown_forecasts
from quantformer_training.finetune import FinetuneConfig, TrainedModel, finetune
from quantformer_training.forecast_distribution import distribution_of
from quantformer_training.indexed import IndexedSource
from quantformer_training.jobs import message
from quantformer_training.joint import JointModel, finetune_joint
from quantformer_training.lesson import Lesson
from quantformer_training.loop import Progress
from quantformer_training.networks import NETWORKS, NetworkConfig, NetworkSpec, finetuned_brainlm
from quantformer_training.paper_design import DESIGNS, paper_design
from quantformer_training.pretrain import Pretrained, load_pretrained
from quantformer_training.run_data import RunData, RunSources
from quantformer_training.run_scores import Answers, Scene, score
from quantformer_training.store import open_session
from quantformer_training.threads import one_thread

Kind = Literal["activation", "forecast", "both"]
#: Leads in frames at which the skill of a model that can be asked so is told.
LEADS = (0, 5, 10)
_BATCH = 4096


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """A model of the study: its name in our tables, its name in the paper's ("" if it is not there), what it answers."""

    title: str
    paper_name: str = ""
    tasks: Kind = "both"


@dataclass(frozen=True, kw_only=True, eq=False)
class Entry:
    """One model on one run: scores by name, or the reason why there are none. ``arrays`` are its answers on test rows, with the
    label, trial and neuron of each, and its forecasts of the few rows that figures show.
    """

    model: str
    task: Kind
    metrics: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    failure: str = ""
    arrays: Mapping[str, NDArray[np.generic]] = field(default_factory=dict)


#: The one model that needs the user's files.
BRAINLM_FINETUNED = "brainlm_finetuned"

_PAPER_NAMES = {
    "lstm": "LSTM", "autoformer": "Autoformer", "informer": "Informer", "crossformer": "Cross-former", "brainlm": "BrainLM",
}  # fmt: skip

MODELS: Mapping[str, ModelCard] = MappingProxyType(
    {
        "quantformer": ModelCard(title="QuantFormer", paper_name="QuantFormer"),
        "quantformer_joint": ModelCard(title="QuantFormer, one encoder for both tasks"),
        "quantformer_paper": ModelCard(title="QuantFormer, the paper's design", paper_name="QuantFormer"),
        "quantformer_prompt": ModelCard(title="QuantFormer, the paper's design, prompt-tuned"),
        "ablation_baseline": ModelCard(title="encoder from scratch", paper_name="Baseline"),
        "ablation_tokens": ModelCard(title="+ learnable tokens", paper_name="Learnable tokens"),
        "ablation_autoencoder": ModelCard(title="+ auto-encoder", paper_name="AE"),
        **{key: ModelCard(title=spec.title, paper_name=_PAPER_NAMES.get(key, "")) for key, spec in NETWORKS.items()},
        BRAINLM_FINETUNED: ModelCard(title="BrainLM, fine-tuned", paper_name="BrainLM ft"),
        **{key: ModelCard(title=str(made.title), tasks="activation") for key, made in ACTIVATION_BASELINES.items()},  # type: ignore[attr-defined]
        **{key: ModelCard(title=str(made.title), tasks="forecast") for key, made in FORECAST_BASELINES.items()},  # type: ignore[attr-defined]
    }
)


def contest(
    *,
    sessions: tuple[str, ...],
    mouse: str,
    category: str,
    models: tuple[str, ...],
    pretrained: str,
    plain: str = "",
    brainlm: str = "",
    label: Definition = "signed",
    effort: Effort,
    seed: int,
    device: str = "cpu",
) -> list[Entry]:
    """Train and score ``models`` (keys of `MODELS`) on one mouse's presentations of a category, or on all mice "pooled".

    ``sessions`` are store directories; ``pretrained`` is an auto-encoder's directory, ``plain`` one without quantisation,
    ``brainlm`` the directory of BrainLM's published weights; ``label`` says what active means. Networks train and answer on
    ``device``, ``cpu`` or ``cuda``. A model that fails gives an entry with the reason; the others go on.

    Raises:
        UsageError: a model or the device is not known. UnavailableError: ``cuda`` was asked for and torch sees no GPU.
        RecordingError: the run itself is not to be had: the category, a part, a class.
    """
    strangers = [name for name in models if name not in MODELS]
    if strangers:
        raise UsageError(f"{', '.join(strangers)} is no model of the study; there are {', '.join(MODELS)}")
    accelerator = one_process(device=device, precision=effort.gpu_precision)
    with one_thread(), threadpool_limits(limits=1):
        run = partial(_run, sessions, mouse=mouse, category=category, effort=effort, label=label)
        course = _Course.lay(
            run(merged=False),
            merged=run(merged=True) if effort.refit else None,
            pretrained=load_pretrained(Path(pretrained)),
            plain=Path(plain) if plain else None,
            brainlm=Path(brainlm) if brainlm else None,
            forecasts=label == LabelRule().definition,
            effort=effort.seeded(seed),
            seed=seed,
            accelerator=accelerator,
        )
        return [course.enter(name) for name in models]


def _run(
    sessions: tuple[str, ...], *, mouse: str, category: str, effort: Effort, label: Definition, merged: bool
) -> RunData:
    """The mouse's first session with the category, or every mouse's together; mice that cannot be used are left out of those."""
    found: dict[str, RunData] = {}
    reasons = []
    for path in sessions:
        session = open_session(Path(path))
        subject = session.provenance.subject
        if mouse not in ("pooled", subject) or subject in found or category not in session.stimuli.category:
            continue
        try:
            rule = LabelRule(definition=label)
            found[subject] = RunData.read(session, category=category, most=effort.most, rule=rule, merged=merged)
        except (RecordingError, SignalError) as error:
            reasons.append(str(error))
    if not found:
        raise RecordingError("; ".join(reasons) or f"mouse {mouse!r} was shown no stimuli of category {category!r}")
    return RunData.pooled(list(found.values())) if mouse == "pooled" else next(iter(found.values()))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Course:
    """A run made ready, on which one model after the other is entered. The ``first`` lesson is of the training part: by what it
    answers on validation everything is chosen. The ``last`` is what answers on the test part have learned from: the same, or
    both parts together. Without ``forecasts`` QuantFormer is asked for the activation alone: a forecast has no label, and was
    made under the usual one. Its own designs train in the precision of ``accelerator``, every other network in float32 on its
    device.
    """

    data: RunData
    first: Lesson
    last: Lesson
    pretrained: Pretrained
    plain: Path | None
    brainlm: Path | None
    forecasts: bool
    effort: Effort
    seed: int
    accelerator: Accelerator
    scene: Scene

    @classmethod
    def lay(
        cls,
        data: RunData,
        *,
        merged: RunData | None = None,
        pretrained: Pretrained,
        plain: Path | None = None,
        brainlm: Path | None = None,
        forecasts: bool = True,
        effort: Effort,
        seed: int,
        accelerator: Accelerator | None = None,
    ) -> _Course:
        scale = pretrained.signal_scale
        first = Lesson.of(data, signal_scale=scale, effort=effort)
        last = first if merged is None else Lesson.of(merged, signal_scale=scale, effort=effort)
        scene = Scene(
            validation=first.validation,
            test=last.test,
            control=last.control,
            rate=ACTIVATION_BASELINES["neuron_stimulus_rate"]().fit(last.known).predict(last.test),
            window=label_frames(data.category),
            minutes=data.minutes,
            validation_seconds=_seconds(data),
        )
        return cls(
            data=data,
            first=first,
            last=last,
            pretrained=pretrained,
            plain=plain,
            brainlm=brainlm,
            forecasts=forecasts,
            effort=effort,
            seed=seed,
            accelerator=accelerator or Accelerator(),
            scene=scene,
        )

    def enter(self, name: str) -> Entry:
        """Train and score one model."""
        card, started = MODELS[name], time.monotonic()
        try:
            answers = self._answers(name)
        except Exception as error:
            # Whatever a library's network raises: the other models of the job go on.
            return Entry(model=name, task=card.tasks, failure=message(error))
        seconds = time.monotonic() - started
        test = self.scene.test
        arrays: dict[str, NDArray[np.generic]] = {
            "active": test.active, "trial": test.trial.astype(np.int32), "neuron": test.neuron.astype(np.int32)
        }  # fmt: skip
        if answers.probability is not None:
            arrays["probability"] = answers.probability.astype(np.float32)
        if answers.response is not None:
            arrays["squared_error"] = np.square(answers.response - test.response).mean(1, dtype=np.float32)
            arrays["r"] = pearson_rows(answers.response.astype(np.float64), test.response.astype(np.float64))
            arrays["shown_row"], arrays["shown_forecast"] = shown_forecasts(
                answers.response, test.response, test.active, seed=self.seed
            )
        metrics = score(answers, self.scene)
        distribution = distribution_of(answers, self.scene)
        if distribution is not None:
            metrics |= distribution.scores(test.neuron)
            arrays["crps"] = distribution.crps.astype(np.float32)
        return Entry(
            model=name,
            task=card.tasks,
            metrics={**metrics, "seconds": seconds},
            seconds=seconds,
            arrays=arrays,
        )

    def _answers(self, name: str) -> Answers:
        if name in ("quantformer", "quantformer_joint"):
            return self._quantformer(joint=name == "quantformer_joint")
        if name in DESIGNS:
            return self._networks(self._design(name), accelerator=self.accelerator)
        if name == BRAINLM_FINETUNED:
            if self.brainlm is None:
                raise UsageError(
                    f"{name} needs the published weights, which are not part of this project; none were given"
                )
            return self._networks(finetuned_brainlm(self.brainlm), accelerator=self._in_float32)
        if name in NETWORKS:
            return self._networks(NETWORKS[name], accelerator=self._in_float32)
        if name in POPULATION_BASELINES and self.first.known.context is None:
            raise RecordingError("several mice have no common population; ask one mouse at a time")
        first, last = self.first, self.last
        if name in FORECAST_BASELINES:
            forecast = FORECAST_BASELINES[name]().fit(first.known)
            held_response = forecast.predict(first.validation)
            if last is not first:
                forecast = FORECAST_BASELINES[name]().fit(last.known)
            return Answers(response=forecast.predict(last.test), validation_response=held_response)
        fitted = ACTIVATION_BASELINES[name]().fit(first.known)
        held = fitted.predict(first.validation)
        if last is not first:
            fitted = ACTIVATION_BASELINES[name]().fit(last.known)
        control = None if last.control is None else fitted.predict(last.control)
        return Answers(probability=fitted.predict(last.test), validation=held, control=control)

    def _quantformer(self, *, joint: bool) -> Answers:
        sources, config = self.last.sources, self.effort.finetuning
        if not self.forecasts and not joint:
            config = replace(config, forecast=replace(config.forecast, stop_after=1))

        def trained(sources: RunSources, config: FinetuneConfig) -> TrainedModel | JointModel:
            made: TrainedModel | JointModel = (finetune_joint if joint else finetune)(
                self.pretrained,
                vocabulary=self.data.vocabulary,
                real=sources.train,
                pseudo=sources.pseudo,
                moments=sources.moments,
                validation=sources.validation,
                config=config,
                report=_silent,
                accelerator=self.accelerator,
            )
            # Asked where it was trained: on a CPU the answers of a large study would take longer than its training on a GPU.
            made.to(self.accelerator.device)
            return made

        model = chosen = trained(self.first.sources, config)
        held = asked(chosen, self.first.sources.validation)
        calibrated = calibrate(chosen, self.first.sources.validation, seconds=self.scene.validation_seconds)
        if self.last is not self.first:
            model = trained(sources, config.stopped(*chosen.results))

        def chance(source: IndexedSource, *, lead: int = 0, denied: bool = False) -> NDArray[np.float64]:
            return probability(asked(model, source, lead=lead, denied=denied)["logit"], calibrated.calibration)

        made = asked(model, sources.test)
        return Answers(
            probability=probability(made["logit"], calibrated.calibration),
            response=made["response"] if self.forecasts else None,
            validation=probability(held["logit"], calibrated.calibration),
            denied=chance(sources.test, denied=True),
            control=chance(sources.control) if len(sources.control) else None,
            by_lead={lead: chance(sources.test, lead=lead) for lead in LEADS if lead},
            validation_response=held["response"],
            parameters=sum(p.numel() for p in set(model.forecaster.parameters()) if p.requires_grad),
        )

    @property
    def _in_float32(self) -> Accelerator:
        return Accelerator(self.accelerator.device)

    def _design(self, name: str) -> NetworkSpec:
        teacher = self.pretrained
        if name == "ablation_autoencoder":
            if self.plain is None:
                raise UsageError(f"{name} needs an auto-encoder without quantisation; none was given")
            teacher = replace(load_pretrained(self.plain), signal_scale=self.pretrained.signal_scale)
        return paper_design(name, title=MODELS[name].title, pretrained=teacher)

    def _networks(self, spec: NetworkSpec, *, accelerator: Accelerator) -> Answers:
        """One network a task, as every competitor of the paper."""
        vocabulary, sources, model = self.data.vocabulary, self.last.sources, self.effort.model
        config = NetworkConfig(
            neurons=len(vocabulary.neuron_ids),
            feature_width=vocabulary.recipe.width,
            stimulus_ids=len(vocabulary.stimulus_ids),
            outputs=1,
            d=model.d,
            layers=model.layers,
            heads=model.heads,
            dropout=model.dropout,
        )

        def trained(
            task: Literal["activation", "forecast"], sources: RunSources, like: TrainedCompetitor | None
        ) -> TrainedCompetitor:
            return train_network(
                spec,
                task=task,
                train=sources.train,
                validation=sources.validation,
                pseudo=sources.pseudo if len(sources.pseudo) else None,
                moments=sources.moments,
                config=config,
                budget=self.effort.budget,
                seed=self.seed,
                signal_scale=self.pretrained.signal_scale,
                report=_silent,
                accelerator=accelerator,
                like=like,
            )

        chosen = trained("activation", self.first.sources, None), trained("forecast", self.first.sources, None)
        activation, forecast = chosen
        if self.last is not self.first:
            activation, forecast = trained("activation", sources, chosen[0]), trained("forecast", sources, chosen[1])
        held = self.first.sources.validation
        return Answers(
            probability=activation.predict(sources.test).astype(np.float64),
            response=forecast.predict(sources.test).astype(np.float32),
            validation=chosen[0].predict(held).astype(np.float64),
            denied=activation.predict(sources.test, denied=True).astype(np.float64),
            control=activation.predict(sources.control).astype(np.float64) if len(sources.control) else None,
            by_lead={lead: activation.predict(sources.test, lead=lead).astype(np.float64) for lead in LEADS if lead},
            validation_response=chosen[1].predict(held).astype(np.float32),
            parameters=sum(
                p.numel() for one in (activation, forecast) for p in one.network.parameters() if p.requires_grad
            ),
        )


def asked(
    model: TrainedModel | JointModel, source: IndexedSource, *, lead: int = 0, denied: bool = False
) -> dict[str, NDArray[np.float32]]:
    """What a model says of every row of a source, by the names of `Prediction`."""
    parts = [vars(model.predict(rows, denied=denied)) for rows in source.batches(lead=lead, size=_BATCH)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _seconds(data: RunData) -> float:
    return sum((stop - start) / m.session.rate_hz for m in data.members for start, stop in m.split.validation)


def _silent(progress: Progress) -> None:
    """Runs of a study report as a whole."""
