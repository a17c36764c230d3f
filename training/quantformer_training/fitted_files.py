"""A fitted model on disk: plain weights and a JSON file that vouches for them; the recording is read again."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import torch

import quantformer
from quantformer.errors import DataError, QuantformerError, UnavailableError, UsageError
from quantformer.forecaster import Forecaster
from quantformer.labels import LabelRule
from quantformer.recording import Recording
from quantformer.signal import SignalRecipe
from quantformer.tokens import TaskTokens
from quantformer_training.calibrate import Calibrated
from quantformer_training.distil import Teachers
from quantformer_training.examples import Vocabulary
from quantformer_training.finetune import TrainedModel
from quantformer_training.fit import PSEUDO_STRIDE, FitConfig, Fitted, fingerprint
from quantformer_training.loop import LoopResult, load_checkpoint, save_checkpoint
from quantformer_training.pretrain import load_pretrained, save_pretrained
from quantformer_training.readers import open_recording
from quantformer_training.splits import PARTS, Split
from quantformer_training.trials import TrialReader, pseudo_moments, real_moments
from quantformer_training.tuning import Tuning

FACTS, WEIGHTS = "fitted.json", "fitted.pt"
#: Number of the schema of `FACTS`; others are refused. 2: says what taught it. 3: tuning has what categories share, and two
#: strengths. 4: networks are told the population's level. 5: the forecast's correction reads all of its tokens. 6: its
#: spread is made of what tells how much it errs.
SCHEMA = 6


@dataclass(frozen=True, kw_only=True)
class RecordingFile:
    """Where a recording is: `open_recording`'s arguments."""

    path: str
    stimuli: str = ""
    rate_hz: float | None = None

    def open(self) -> Recording:
        """As `open_recording`."""
        stimuli = Path(self.stimuli) if self.stimuli else None
        return open_recording(Path(self.path), stimuli=stimuli, rate_hz=self.rate_hz)


class _Facts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything but weights. ``weights_sha256`` is that of `WEIGHTS`."""

    format: Literal["quantformer-fitted"] = "quantformer-fitted"
    schema: int = SCHEMA
    created_utc: str
    software: str
    recording: RecordingFile
    recording_sha256: str
    weights_sha256: str
    config: FitConfig
    split: Split
    vocabulary: Vocabulary
    signal: SignalRecipe
    label: LabelRule
    tuning_strengths: tuple[float, float]
    results: tuple[LoopResult, LoopResult]
    calibrated: Calibrated
    taught_by: str = ""


class _Head(msgspec.Struct):
    format: str
    schema: int


def save_fitted(fitted: Fitted, directory: Path, *, recording: RecordingFile) -> None:
    """Write what `load_fitted` reads: ``fitted.json``, ``fitted.pt`` and ``pretrained.pt``.

    Raises:
        UnavailableError: it cannot be written.
    """
    save_pretrained(fitted.pretrained, directory)
    model = fitted.model
    state = {
        "forecaster": model.forecaster.state_dict(),
        "tokens": [tokens.state_dict() for tokens in model.tokens],
        "tuning": torch.from_numpy(fitted.tuning.neuron),
        "population_tuning": torch.from_numpy(fitted.tuning.population),
    }
    save_checkpoint(directory / WEIGHTS, state, fingerprint=WEIGHTS)
    facts = _Facts(
        created_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        software=f"quantformer {quantformer.__version__}, torch {torch.__version__}",
        recording=recording,
        recording_sha256=fingerprint(fitted.reader.recording),
        weights_sha256=_sha256(directory / WEIGHTS),
        config=fitted.config,
        split=fitted.split,
        vocabulary=fitted.vocabulary,
        signal=fitted.reader.recipe,
        label=fitted.reader.rule,
        tuning_strengths=fitted.tuning.strengths,
        results=model.results,
        calibrated=fitted.calibrated,
        taught_by=fitted.taught_by,
    )
    path = directory / FACTS
    try:
        aside = path.with_suffix(".partial")
        aside.write_bytes(msgspec.json.format(msgspec.json.encode(facts), indent=1))
        aside.replace(path)
    except OSError as error:
        raise UnavailableError(f"{path} cannot be written ({error.strerror}); make room and train again") from error


def is_fitted(directory: Path) -> bool:
    """Whether a directory holds a fitted model."""
    return (directory / FACTS).is_file()


def load_fitted(directory: Path, *, recording: RecordingFile | None = None) -> Fitted:
    """Read a fitted model and its recording; no code is unpickled. ``recording`` is said where it has moved.

    Raises:
        DataError: a file is missing, damaged, altered or of another schema, or the recording is not the one it was fitted on.
        RecordingError: the recording cannot be read.
    """
    facts = _read_facts(directory / FACTS)
    path = directory / WEIGHTS
    if not path.is_file() or _sha256(path) != facts.weights_sha256:
        raise DataError(f"{path} is missing or not the file that {FACTS} was written with; run 'quantformer finetune' again")
    weights = load_checkpoint(path, fingerprint=WEIGHTS)
    pretrained = load_pretrained(directory)
    opened = (recording or facts.recording).open()
    if fingerprint(opened) != facts.recording_sha256:
        raise DataError(
            f"{(recording or facts.recording).path} is not the recording that {directory} was fitted on (SHA-256 of its "
            f"content {fingerprint(opened)}, then {facts.recording_sha256}); give the one that it was"
        )
    forecaster = Forecaster(
        pretrained.config,
        teacher=pretrained.autoencoder,
        signal_scale=pretrained.signal_scale,
    )
    vocabulary = facts.vocabulary
    tokens = [
        TaskTokens(
            neurons=len(vocabulary.neuron_ids),
            feature_width=vocabulary.recipe.width,
            stimulus_ids=len(vocabulary.stimulus_ids),
            d=pretrained.config.d,
        )
        for _ in range(2)
    ]
    try:
        forecaster.load_state_dict(weights["forecaster"])
        for made, state in zip(tokens, weights["tokens"], strict=True):
            made.load_state_dict(state)
        tuning = Tuning(
            neuron=weights["tuning"].numpy(),
            population=weights["population_tuning"].numpy(),
            strengths=facts.tuning_strengths,
        )
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path} does not fit {FACTS} ({reason}); run 'quantformer finetune' again") from None
    reader = TrialReader(opened, split=facts.split, recipe=facts.signal, rule=facts.label)
    candidates = np.arange(facts.signal.baseline_frames, opened.frames - facts.signal.response_frames, PSEUDO_STRIDE)
    real, pseudo = real_moments(opened), pseudo_moments(opened, candidates, recipe=facts.signal)
    return Fitted(
        config=facts.config,
        reader=reader,
        split=facts.split,
        vocabulary=vocabulary,
        pretrained=pretrained,
        tuning=tuning,
        model=TrainedModel(
            forecaster=forecaster.eval(), tokens=(tokens[0], tokens[1]), vocabulary=vocabulary, results=facts.results
        ),
        calibrated=facts.calibrated,
        real={part: reader.read(real, part=part) for part in PARTS},
        pseudo={part: reader.read(pseudo, part=part) for part in PARTS},
        taught_by=facts.taught_by,
    )


def load_teachers(directories: Sequence[Path], *, recording: RecordingFile, split: Split) -> Teachers | None:
    """The models of fitted directories as teachers of a student that is trained on a recording's ``split``; None of none.

    Raises:
        UsageError: a teacher learned from what its student is validated or tested on.
        DataError, RecordingError: as `load_fitted`.
    """
    models = []
    for directory in directories:
        fitted = load_fitted(directory, recording=recording)
        held = (*split.validation, *split.test)
        both = [(max(a, c), min(b, d)) for a, b in fitted.split.train for c, d in held]
        common = [(low, high) for low, high in both if low < high]
        if common:
            raise UsageError(
                f"{directory} learned from frames {common}, on which its student is to be validated or tested; fit the teacher "
                "on the same presentations, with fit.refit = false"
            )
        models.append(fitted.model)
    return Teachers(models=tuple(models)) if models else None


def _read_facts(path: Path) -> _Facts:
    try:
        text = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}); a fitted model is made by 'quantformer finetune'"
        ) from None
    try:
        head = msgspec.json.decode(text, type=_Head)
        if head.format != "quantformer-fitted":
            raise DataError(f"its format is {head.format!r}")
        if head.schema != SCHEMA:
            newer = ": update quantformer" if head.schema > SCHEMA else ""
            raise DataError(f"its schema is {head.schema}, this software reads {SCHEMA}{newer}")
        facts = msgspec.json.decode(text, type=_Facts)
        if not all(0.0 < strength < math.inf for strength in facts.tuning_strengths):
            raise DataError(f"its tuning strengths are {facts.tuning_strengths}")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, QuantformerError) as error:
        raise DataError(f"{path} does not describe a fitted model ({error}); run 'quantformer finetune' again") from None
    return facts


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
