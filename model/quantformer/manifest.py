"""The manifest of a bundle: every fact needed to use and to judge the model, strictly typed."""

from __future__ import annotations

import dataclasses
import hashlib
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal

import msgspec

from quantformer.errors import BundleError, SignalError
from quantformer.signal import SignalRecipe
from quantformer.vocabulary import StimulusRecipe

#: Number of the manifest's schema; others are refused. Schema 1 lacked the neurons' usual fluorescence, schema 2 their rate
#: whatever the stimulus, schema 3 forms, schema 4 what a neuron's tuning has in common over categories, schema 5 the level of
#: their population.
SCHEMA = 6
FORMAT: Final = "quantformer-bundle"

#: What a bundle's graphs compute in: float32 always, and lower *forms*, at most one a device.
Precision = Literal["float32", "int8", "float16"]
FormName = Literal["int8", "float16"]
FORM_OF: MappingProxyType[str, FormName] = MappingProxyType({"cpu": "int8", "cuda": "float16"})

_Positive = Annotated[float, msgspec.Meta(gt=0)]
_Probability = Annotated[float, msgspec.Meta(ge=0, le=1)]


class Label(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What *active* means: the definition, its threshold in dF/F, and the frames of the response it averages."""

    definition: Literal["signed", "absolute", "evoked"]
    threshold: float
    frames: dict[str, int]


class StimulusSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A stimulus that training saw: its category, features, and the row of its id vector, if it has one."""

    category: str
    features: dict[str, float]
    id_row: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] | None = None


class Calibration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """probability = sigmoid(logit / temperature + bias), fitted on validation."""

    temperature: _Positive
    bias: float


class Interval(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Forecast interval: response + (spread + floor) * (low, high), frame by frame; quantiles fitted on validation."""

    level: _Probability
    floor: Annotated[float, msgspec.Meta(ge=0)]
    low: list[float]
    high: list[float]


class LeadSkill(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Validation scores with the last ``lead`` frames withheld."""

    lead: Annotated[int, msgspec.Meta(ge=0)]
    log_loss: float
    auroc_within_neuron: float | None
    mse: float


class Parity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """PyTorch against the ONNX graph, or that against a form: largest absolute difference over ``rows`` rows."""

    rows: int
    logit: float
    response: float
    spread: float
    provider: str


class SkillLost(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A score of the float32 graph (less is better), how much more a form has on the same rows, and the upper end of the
    95 % interval of that.
    """

    float32: float
    lost: float
    at_most: float


class Form(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A graph of lower precision: what it loses on validation rows, and how far its answers there are from float32's.

    ``refused`` says why it was not admitted; such a form has no file. Empty: the bundle holds it.
    """

    log_loss: SkillLost
    mse: SkillLost
    agreement: Parity
    refused: str = ""

    def __str__(self) -> str:
        if self.refused:
            return f"refused: {self.refused}"
        losses = (
            f"{name} {one.float32:.4f} {one.lost:+.1e}, at most {one.at_most:+.1e}"
            for name, one in (("log-loss", self.log_loss), ("MSE", self.mse))
        )
        return f"admitted: {'; '.join(losses)}; a logit off by at most {self.agreement.logit:.3f} (validation)"


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """See the fields; ``files`` maps the other files of the bundle to their SHA-256, and ``checksum`` is that of the
    manifest itself as written with an empty ``checksum``.
    """

    format: Literal["quantformer-bundle"] = FORMAT
    schema: int = SCHEMA
    checksum: str = ""
    created_utc: str
    software: str
    preset: str
    precision: Literal["float32", "float16", "bfloat16", "int8"]
    d: Annotated[int, msgspec.Meta(ge=1, le=65536)]
    codes: Annotated[int, msgspec.Meta(ge=2, le=65536)]
    codebook_sha256: str
    #: dF/F divided by this is what the network sees.
    signal_scale: _Positive
    #: Trials that the mean neuron counts for in a neuron's tuning: of rates, and of traces.
    tuning_strengths: tuple[_Positive, _Positive]
    signal: SignalRecipe
    label: Label
    phases: list[str]
    longest_lead: Annotated[int, msgspec.Meta(ge=0)]
    neuron_ids: tuple[str, ...]
    stimulus_recipe: StimulusRecipe
    stimuli: dict[str, StimulusSpec]
    calibration: Calibration
    interval: Interval
    thresholds: dict[str, float]
    skill_by_lead: list[LeadSkill]
    metrics: dict[str, float]
    parity: Parity
    provenance: dict[str, str]
    forms: dict[FormName, Form] = {}
    files: dict[str, str] = {}

    def replace(self, **changes: object) -> Manifest:
        """A copy with these fields changed."""
        return msgspec.structs.replace(self, **changes)


class _Head(msgspec.Struct):
    format: str
    schema: int


def parse_manifest(text: bytes, *, source: str) -> Manifest:
    """Read a manifest; ``source`` names it in errors.

    Raises:
        BundleError: not JSON, foreign, of another schema, altered, or a field is missing, unknown or of the wrong kind.
    """
    try:
        head = msgspec.json.decode(text, type=_Head)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(
            f"{source} is not a bundle's manifest ({error}); it is damaged or foreign: export it again"
        ) from None
    if head.format != FORMAT:
        raise BundleError(f"{source} has format {head.format!r}, expected {FORMAT!r}: this is another program's file")
    if head.schema != SCHEMA:
        what_to_do = "update quantformer" if head.schema > SCHEMA else "train the model and export the bundle again"
        raise BundleError(f"{source} has schema {head.schema}, this software reads {SCHEMA}: {what_to_do}")
    try:
        manifest = msgspec.json.decode(text, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, SignalError) as error:
        raise BundleError(f"{source}: {error}; the manifest is damaged: export the bundle again") from None
    expected = _checksum(text.replace(_quoted(manifest.checksum), _quoted(""), 1))
    if manifest.checksum != expected:
        raise BundleError(
            f"{source} has checksum {manifest.checksum[:16]!r}, its content {expected[:16]!r}: it was altered; copy the "
            "bundle again or export it anew"
        )
    for name, part in (("signal", SignalRecipe), ("stimulus_recipe", StimulusRecipe)):
        _check_names(text, name=name, part=part, source=source)
    frames = manifest.signal.response_frames
    found = len(manifest.interval.low), len(manifest.interval.high)
    if found != (frames, frames):
        raise BundleError(f"{source}: the interval's bounds have {found} frames, the response has {frames}")
    if len(set(manifest.neuron_ids)) != len(manifest.neuron_ids):
        raise BundleError(f"{source}: a neuron id occurs twice")
    rows = sorted(spec.id_row for spec in manifest.stimuli.values() if spec.id_row is not None)
    if rows != list(range(len(rows))):
        raise BundleError(f"{source}: the rows of the stimulus ids are {rows[:8]}, expected each from 0 on once")
    return manifest


def render_manifest(manifest: Manifest) -> bytes:
    """The manifest as indented JSON, with its checksum."""
    bare = msgspec.json.format(msgspec.json.encode(manifest.replace(checksum="")), indent=1)
    # The checksum stands before every field whose content could look like it.
    return bare.replace(_quoted(""), _quoted(_checksum(bare)), 1)


def _quoted(checksum: str) -> bytes:
    return f'"checksum": "{checksum}"'.encode()


def _checksum(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()


def _check_names(text: bytes, *, name: str, part: type[Any], source: str) -> None:
    """Refuse unknown names in those parts that are dataclasses, which msgspec would pass over."""
    known = {field.name for field in dataclasses.fields(part)}
    strangers = sorted(set(msgspec.json.decode(text)[name]) - known)
    if strangers:
        raise BundleError(f"{source}: {name} holds unknown fields {strangers}; the manifest is damaged: export it again")
