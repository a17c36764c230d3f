"""Proof, before a service is ready, that its device and its graph answer as the float32 graph does on the CPU.

A lower precision was judged when the bundle was exported, on the CPU of that machine. What a GPU's kernels make of it, or
of the float32 graph, nobody has seen before this start on this card with this driver and runtime.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantformer.bundle import Bundle
from quantformer.config import LEVEL_QUANTITIES
from quantformer.errors import ProviderError
from quantformer_service.buffers import PROBABILITY, Results
from quantformer_service.network import Network
from quantformer_service.runtime import open_session

OUTPUTS = tuple(field.name for field in fields(Results))
#: Made-up neurons that are asked about, each of some neuron of the bundle.
ROWS = 64
#: Largest difference of an answer, be it logit, response or spread: where both graphs are float32 only the order of sums
#: differs; of a form this much is always allowed.
SAME_GRAPH, ANY_FORM = 1e-3, 5e-3
#: A form may be off by so many times what it was off by on validation rows, which were others.
MARGIN = 5.0


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Largest absolute difference of an answer to float32 on the CPU, and what was allowed."""

    name: str
    found: float
    allowed: float

    def __str__(self) -> str:
        return f"{self.name} off by {self.found:.2g} (allowed {self.allowed:.2g})"


def prove(network: Network, bundle: Bundle) -> list[Difference]:
    """Ask ``network`` and the bundle's float32 graph on the CPU the same question; the differences of what they say.

    Raises:
        ProviderError: one is larger than is allowed, or an answer is not finite.
    """
    rng = np.random.default_rng(0)
    known = bundle.neurons(bundle.manifest.neuron_ids[:ROWS], unknown="refuse").vectors
    stimulus, rows = _stimuli(bundle), np.arange(ROWS)
    neuron, row_stimulus = known[rows % len(known)], rows % len(stimulus)
    # Noise as large as the signals that training saw, so that nothing is asked that no neuron ever does.
    noise = rng.normal(0, bundle.manifest.signal_scale, (ROWS, bundle.recipe.baseline_frames))
    baseline = noise.astype(np.float32)
    level = rng.normal(0, 0.3, (ROWS, LEVEL_QUANTITIES)).astype(np.float32)
    population = network.place(neuron)

    def ask(forecast: bool) -> Results:
        return network.ask(population, stimulus=stimulus, row_neuron=rows, row_stimulus=row_stimulus, forecast=forecast)

    # About nothing first: a GPU captures its kernels then, and must read what comes later when it replays them.
    ask(True), ask(False)
    population.baseline[:], population.level[:] = baseline, level
    whole, alone = ask(True), ask(False)
    asked: dict[str, NDArray[Any]] = {
        "baseline": baseline,
        "level": level,
        "neuron": neuron,
        "stimulus": stimulus,
        "row_neuron": rows,
        "row_stimulus": row_stimulus,
    }
    reference = open_session(bundle.in_precision("float32"), provider="cpu")
    expected = dict(zip(OUTPUTS, reference.run(list(OUTPUTS), asked), strict=True))
    found = [(name, name, getattr(whole, name)) for name in OUTPUTS]
    differences = [
        Difference(name=title, found=float(np.abs(answer - expected[name]).max()), allowed=_allowed(bundle, name))
        for title, name, answer in (*found, (f"{PROBABILITY} alone", PROBABILITY, alone.logit))
    ]
    # So written that NaN is refused too.
    if wrong := [one for one in differences if not one.found <= one.allowed]:
        raise ProviderError(
            f"provider {network.provider} in {bundle.precision} does not answer as float32 on the CPU does: "
            f"{', '.join(map(str, wrong))}; set precision float32, or provider cpu, and report the card, driver and runtime"
        )
    return differences


def _stimuli(bundle: Bundle) -> NDArray[np.float32]:
    """Stimuli of the bundle, or one of a category where it names none ``(stimuli, 2, width)``."""
    if named := list(bundle.manifest.stimuli)[:ROWS]:
        return np.stack([bundle.stimulus(name) for name in named])
    return bundle.stimulus_from_features(category=bundle.manifest.stimulus_recipe.categories[0], features={})[None]


def _allowed(bundle: Bundle, name: str) -> float:
    if bundle.precision == "float32":
        return SAME_GRAPH
    agreed: float = getattr(bundle.manifest.forms[bundle.precision].agreement, name)
    return max(ANY_FORM, MARGIN * agreed)
