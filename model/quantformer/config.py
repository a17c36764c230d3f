"""Sizes of the network, checked once. `PRESETS` has ``small`` for CPUs, ``live`` of a thirtieth of the paper's arithmetic, which
answers every frame on two cores, and ``paper``, exactly the paper's (section 4.2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from quantformer.errors import UsageError

#: What is known of a neuron and stimulus beforehand: the rate of active responses after any stimulus of the category and after
#: this one, and mean dF/F in bins of the response.
TUNING_RATES, TUNING_BINS = 2, 8
TUNING_QUANTITIES = TUNING_RATES + TUNING_BINS
#: How F0 stands against the neuron's usual fluorescence (`quantformer.signal.f0_level`), and how the neurons together stand
#: against what they usually do (`quantformer.population_level`).
F0_LEVELS, POPULATION_LEVELS = 2, 2
LEVEL_QUANTITIES = F0_LEVELS + POPULATION_LEVELS
#: Level, log-odds of the rates, and tuning.
KNOWN_QUANTITIES = LEVEL_QUANTITIES + TUNING_RATES + TUNING_QUANTITIES
#: Bins in which the network's summary of a baseline is told.
BASELINE_BINS = 8
#: The bins, the standard deviation and the end.
SUMMARY_QUANTITIES = BASELINE_BINS + 2
#: Sizes beyond these are mistakes, or a file that would exhaust the machine.
_LARGEST = MappingProxyType(
    {
        "d": 2048, "layers": 48, "heads": 128, "codes": 65536, "patch_frames": 1024, "baseline_frames": 4096,
        "response_frames": 4096,
    }
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Encoder and decoder alike have ``layers`` layers of width ``d`` and ``heads`` heads; ``codes`` is the paper's K."""

    d: int = 128
    layers: int = 6
    heads: int = 8
    codes: int = 32
    patch_frames: int = 16
    baseline_frames: int = 96
    response_frames: int = 64
    dropout: float = 0.1
    mask_probability: float = 0.2

    def __post_init__(self) -> None:
        for name, most in _LARGEST.items():
            value = getattr(self, name)
            if not isinstance(value, int) or not 1 <= value <= most:
                raise UsageError(f"{name} = {value}; expected a whole number from 1 to {most}")
        if self.d % self.heads:
            raise UsageError(
                f"d = {self.d} is not a multiple of heads = {self.heads}; choose a width that the heads share"
            )
        for name in ("baseline_frames", "response_frames"):
            if getattr(self, name) % self.patch_frames:
                raise UsageError(
                    f"{name} = {getattr(self, name)} is not a multiple of patch_frames = {self.patch_frames}"
                )
        if self.codes < 2:
            raise UsageError(f"codes = {self.codes}; expected 2 to {_LARGEST['codes']}")
        if self.baseline_frames % BASELINE_BINS or TUNING_BINS % self.response_patches:
            raise UsageError(
                f"baseline_frames = {self.baseline_frames} and {self.response_patches} response patches; the baseline must "
                f"share out over {BASELINE_BINS} bins, and {TUNING_BINS} bins of tuning over the response patches"
            )
        if not 0.0 <= self.dropout < 1.0 or not 0.0 < self.mask_probability < 1.0:
            raise UsageError(
                f"dropout = {self.dropout} must lie in [0, 1), mask_probability = {self.mask_probability} in (0, 1)"
            )

    @property
    def baseline_patches(self) -> int:
        """Patches of the baseline (6 at the paper's lengths)."""
        return self.baseline_frames // self.patch_frames

    @property
    def response_patches(self) -> int:
        """Patches of the response (4 at the paper's lengths)."""
        return self.response_frames // self.patch_frames

    @property
    def patches(self) -> int:
        """Patches of a whole trial (10 at the paper's lengths)."""
        return self.baseline_patches + self.response_patches


PRESETS: Mapping[str, ModelConfig] = MappingProxyType(
    {
        "small": ModelConfig(d=64, layers=2, heads=4),
        "live": ModelConfig(d=64, layers=1, heads=4),
        "paper": ModelConfig(),
    }
)
