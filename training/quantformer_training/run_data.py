"""One run of a study: a mouse and a stimulus category (or several mice together), its parts, and what networks are told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from quantformer.errors import RecordingError
from quantformer.labels import LabelRule
from quantformer.recording import Origin
from quantformer.signal import SignalRecipe
from quantformer.vocabulary import NOTHING, ONGOING, StimulusRecipe
from quantformer_training.examples import Vocabulary, even
from quantformer_training.fit import MOMENT_STRIDE, MOST_STIMULUS_IDS, PSEUDO_STRIDE
from quantformer_training.indexed import IndexedPart, IndexedSource, IndexedTrials, SessionReader
from quantformer_training.splits import PARTS, Split, split_by_sub_session, split_by_time
from quantformer_training.store import StoredSession
from quantformer_training.study import control_moments
from quantformer_training.trials import Moments, moments_of, nearest, pseudo_moments, real_moments
from quantformer_training.tuning import Tuning, fit_tuning, out_of_fold

#: Share of the presentations that train where a recording has no sub-sessions.
TRAIN_SHARE = 2 / 3


@dataclass(frozen=True, kw_only=True)
class MostTrials:
    """Presentations of each part, and moments of training, that are read, spread evenly over it; None reads all."""

    train: int | None = None
    moments: int | None = None
    validation: int | None = None
    test: int | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Member:
    """One session of a run: its trials at real onsets by part, pseudo-onsets and other moments of training, and pseudo-onsets
    of the control; ``test_share`` of the test part's presentations are read.
    """

    session: StoredSession
    split: Split
    real: Mapping[str, IndexedTrials]
    pseudo: IndexedTrials
    moments: IndexedTrials
    control: IndexedTrials
    test_share: float


@dataclass(frozen=True, kw_only=True, eq=False)
class RunSources:
    """What networks are trained and asked on. ``moments`` are any of training, ``control`` holds pseudo-onsets of the test part;
    both it and ``pseudo`` may be empty: stimuli that follow each other at once leave no moment at which nothing begins.
    """

    train: IndexedSource
    pseudo: IndexedSource
    moments: IndexedSource
    validation: IndexedSource
    test: IndexedSource
    control: IndexedSource


@dataclass(frozen=True, kw_only=True, eq=False)
class RunData:
    """The trials of one run, before the signal scale is known."""

    mouse: str
    category: str
    origin: Origin
    vocabulary: Vocabulary
    members: tuple[Member, ...]

    @classmethod
    def read(
        cls,
        session: StoredSession,
        *,
        category: str,
        most: MostTrials,
        rule: LabelRule | None = None,
        merged: bool = False,
    ) -> RunData:
        """One session's presentations of a category; ``rule`` says what active means (default: the paper's words). Where parts
        are ``merged``, presentations of validation train, too.

        Raises:
            RecordingError: the category is not there, a part has no usable trial, or only one class of them.
        """
        vocabulary = _vocabulary(session, category)
        split = split_of(session, category=category)
        split = split.merged() if merged else split
        member = _member(session, split=split, category=category, most=most, rule=rule or LabelRule())
        made = cls(
            mouse=session.provenance.subject,
            category=category,
            origin=session.provenance.origin,
            vocabulary=vocabulary,
            members=(member,),
        )
        made._check()
        return made

    @classmethod
    def pooled(cls, runs: Sequence[RunData]) -> RunData:
        """Several mice's runs of one category as one."""
        return cls(
            mouse="pooled",
            category=runs[0].category,
            origin=runs[0].origin,
            vocabulary=Vocabulary(
                neuron_ids=tuple(f"{run.mouse}/{name}" for run in runs for name in run.vocabulary.neuron_ids),
                stimulus_ids=tuple(dict.fromkeys(name for run in runs for name in run.vocabulary.stimulus_ids)),
                recipe=StimulusRecipe.covering(
                    [name for run in runs for name in run.vocabulary.recipe.categories],
                    [name for run in runs for name in run.vocabulary.recipe.image_features],
                ),
            ),
            members=tuple(member for run in runs for member in run.members),
        )

    @property
    def minutes(self) -> float:
        """Time that the test rows took in minutes, mice one after the other: all neurons share one output."""
        return sum(
            (stop - start) / one.session.rate_hz / 60.0 * one.test_share
            for one in self.members
            for start, stop in one.split.test
        )

    def sources(self, signal_scale: float) -> RunSources:
        """Everything with its tuning: out of fold for trials that it was regressed on."""
        parts = [
            self._parts(member, first, signal_scale) for member, first in zip(self.members, self._first(), strict=True)
        ]

        def source(name: str, *, withheld: bool = True) -> IndexedSource:
            return IndexedSource(
                [part[name] for part in parts], signal_scale=signal_scale, recipe=SignalRecipe(), withheld=withheld
            )

        return RunSources(
            train=source("train"),
            pseudo=source("pseudo"),
            moments=source("moments", withheld=False),
            validation=source("validation"),
            test=source("test"),
            control=source("control"),
        )

    def _first(self) -> list[int]:
        """Row of each member's first neuron in the vocabulary."""
        return [0, *np.cumsum([member.session.neurons for member in self.members])[:-1].tolist()]

    def _parts(self, member: Member, first: int, scale: float) -> dict[str, IndexedPart]:
        sets = [member.real["train"], member.pseudo]
        features = np.concatenate([self.vocabulary.tuning_features(one.moments) for one in sets])
        values = np.concatenate([scaled(one, scale) for one in sets])
        valid = np.concatenate([one.valid for one in sets])
        block = np.concatenate([one.moments.trial for one in sets])
        judged = np.concatenate([~one.moments.pseudo for one in sets])
        constant = self.vocabulary.tuning_constants
        tuning = fit_tuning(features, values, valid, block, constant=constant, judged=judged)
        neuron, population = out_of_fold(features, values, valid, block, constant=constant, strengths=tuning.strengths)
        cut = len(sets[0].moments)
        # A moment is told what its presentation is.
        own = nearest(sets[0].moments, member.moments.moments.frame)
        return {
            "train": self._part(sets[0], first, (neuron[:cut], population[:cut])),
            "pseudo": self._part(sets[1], first, (neuron[cut:], population[cut:])),
            "moments": self._part(member.moments, first, (neuron[own], population[own])),
            "validation": self._told(member.real["validation"], first, tuning),
            "test": self._told(member.real["test"], first, tuning),
            "control": self._told(member.control, first, tuning),
        }

    def _told(self, trials: IndexedTrials, first: int, tuning: Tuning) -> IndexedPart:
        features = self.vocabulary.tuning_features(trials.moments)
        return self._part(trials, first, (tuning.of(features), tuning.of_population(features)))

    def _part(
        self, trials: IndexedTrials, first: int, known: tuple[NDArray[np.float32], NDArray[np.float32]]
    ) -> IndexedPart:
        return IndexedPart(
            trials=trials,
            neuron=np.arange(first, first + trials.session.neurons),
            stimulus=self.vocabulary.id_rows(trials.moments),
            features=self.vocabulary.encoded(trials.moments),
            tuning=known[0],
            population_tuning=known[1],
        )

    def _check(self) -> None:
        name = self.members[0].session.name
        for part, trials in self.members[0].real.items():
            if not trials.valid.any():
                raise RecordingError(
                    f"{name}: no usable trial of {self.category} in the {part} part; left out: {dict(trials.rejected)}"
                )
            active = trials.active[trials.valid]
            if active.all() or not active.any():
                raise RecordingError(
                    f"{name}: every one of the {len(active)} neuron-trials of {self.category} in the {part} part is "
                    f"{'active' if active.all() else 'inactive'}; a comparison needs both"
                )


def split_of(session: StoredSession, *, category: str) -> Split:
    """By sub-session where the category has three; else chronologically, two thirds of its presentations first.

    Raises:
        RecordingError: the category was not shown, or too seldom.
    """
    chosen = np.array([name == category for name in session.stimuli.category])
    if not chosen.any():
        raise RecordingError(
            f"{session.name} has no stimuli of category {category!r}; it has {', '.join(sorted(set(session.stimuli.category)))}"
        )
    subs = set(session.stimuli.sub_session[chosen].tolist()) - {-1}
    if len(subs) >= 3:
        return split_by_sub_session(session, recipe=SignalRecipe(), category=category)
    alone = replace(session, stimuli=session.stimuli.select(chosen))
    return split_by_time(alone, recipe=SignalRecipe(), train_trials=int(chosen.sum() * TRAIN_SHARE))


def scaled(trials: IndexedTrials, scale: float) -> NDArray[np.float64]:
    """What tuning regresses, ``(n, neurons, 9)``: the label as a grade, and binned dF/F over the signal scale."""
    values = trials.values.astype(np.float64)
    values[..., 1:] /= scale
    return values


def _member(session: StoredSession, *, split: Split, category: str, most: MostTrials, rule: LabelRule) -> Member:
    recipe = SignalRecipe()
    reader = SessionReader(session, split=split, recipe=recipe, rule=rule)
    moments = real_moments(session)
    moments = moments.select(np.flatnonzero([name == category for name in moments.category]))
    candidates = np.concatenate([np.arange(low, high, PSEUDO_STRIDE) for low, high in split.train])
    pseudo = _own(pseudo_moments(session, candidates, recipe=recipe), category)
    real = {part: reader.read(_fewer(moments, split, part, getattr(most, part)), part=part) for part in PARTS}
    frames = np.concatenate([np.arange(low, high, MOMENT_STRIDE) for low, high in split.train])
    anywhere = _fewer(moments_of(real["train"].moments, frames), split, "train", most.moments)
    shown = int(split.inside("test", moments.frame, moments.frame + 1).sum())
    return Member(
        session=session,
        split=split,
        real=real,
        pseudo=reader.read(_fewer(pseudo, split, "train", most.train), part="train"),
        moments=reader.read(anywhere, part="train"),
        control=reader.read(_fewer(_own(control_moments(session), category), split, "test", most.test), part="test"),
        test_share=len(real["test"].moments) / max(shown, 1),
    )


def _own(moments: Moments, category: str) -> Moments:
    """Pseudo-onsets that do not fall into a presentation of another category."""
    return moments.select(np.flatnonzero([name in (ONGOING + category, NOTHING) for name in moments.category]))


def _fewer(moments: Moments, split: Split, part: str, most: int | None) -> Moments:
    """Those whose onset lies in the part, or an even choice of them."""
    inside = np.flatnonzero(split.inside(part, moments.frame, moments.frame + 1))
    return moments.select(inside[even(len(inside), most)])


def _vocabulary(session: StoredSession, category: str) -> Vocabulary:
    real = real_moments(session)
    real = real.select(np.flatnonzero([name == category for name in real.category]))
    ids = tuple(sorted(set(real.stimulus_id)))
    names = {name for features in real.features for name in features}
    return Vocabulary(
        neuron_ids=session.neuron_ids,
        stimulus_ids=ids if len(ids) <= MOST_STIMULUS_IDS else (),
        recipe=StimulusRecipe.covering([category, ONGOING + category, NOTHING], [*names]),
    )
