"""The inference thread: owns the network, turns a captured window into probabilities and a forecast.

The loop fills a `Slot` (its window memory is allocated once and reused), `submit`s it and goes on; the thread writes dF/F
into the graph's input, runs the graph and hands the slot back. Two slots: while one is computed, the next is filled.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantformer.bundle import Bundle
from quantformer.signal import SignalRecipe, f0_level, window_on_grid, write_baseline
from quantformer_service.network import Network
from quantformer_service.runtime import Provider

_log = logging.getLogger(__name__)

#: Questions answered to nobody before the engine calls itself ready.
WARM_UP_RUNS = 5
#: A GPU is kept warm by a pulse whenever it had nothing to do for this many s, for so many s after the last question.
PULSE_S, PULSE_FOR_S = 0.005, 2.0


class Slot:
    """One question on its way through inference: the captured window, what to ask of it, and then the results.

    ``values`` float32 ``(frames, neurons)``, ``stamps`` s and ``observed`` are the captured frames; ``anchor_s`` is the
    onset frame's stamp, the origin of the grid where the rate is ``interpolated``. Row ``b`` of the graph asks about
    ``row_neuron[b]`` and ``row_stimulus[b]``. ``baseline`` is handed back only if ``keep_baseline``.
    """

    def __init__(self) -> None:
        self._memory = np.empty(0, np.float32)
        self.values = np.empty((0, 0), np.float32)
        self.stamps = np.empty(0, np.float64)
        self.observed = np.empty(0, np.bool_)
        self.question: Any = None
        self.anchor_s = 0.0
        self.interpolated = False
        self.neuron = np.empty((0, 2, 0), np.float32)
        self.f0_minimum = np.empty(0, np.float64)
        self.usual_f0 = np.empty(0, np.float64)
        #: Of each neuron, or one for all: until it is told, no F0 is outside.
        self.f0_lowest, self.f0_highest = np.array([-np.inf]), np.array([np.inf])
        self.stimulus = np.empty((0, 2, 0), np.float32)
        self.row_neuron = np.empty(0, np.int64)
        self.row_stimulus = np.empty(0, np.int64)
        self.forecast = True
        self.keep_baseline = True
        self.submitted_ns = self.done_ns = 0
        self.failure: str | None = None
        self.baseline = np.empty((0, 0), np.float32)
        self.level = np.empty((0, 2), np.float32)
        self.f0 = np.empty(0, np.float64)
        self.usable = np.empty(0, np.bool_)
        self.outside = np.empty(0, np.bool_)
        self.sound = False
        self.probability = np.empty(0, np.float32)
        self.response: NDArray[np.float32] | None = None
        self.low: NDArray[np.float32] | None = None
        self.high: NDArray[np.float32] | None = None

    def room(self, frames: int, neurons: int) -> NDArray[np.float32]:
        """Memory ``(frames, neurons)`` for ``values``, which becomes it; grown only when a larger session comes."""
        if self._memory.size < frames * neurons:
            self._memory = np.empty(frames * neurons, np.float32)
        self.values = self._memory[: frames * neurons].reshape(frames, neurons)
        return self.values


def write_input(slot: Slot, recipe: SignalRecipe, *, out: NDArray[np.float32]) -> None:
    """Turn the captured frames into the network's input: dF/F into ``out`` ``(neurons, baseline_frames)``, and the slot's
    ``level``, ``f0``, ``usable``, ``outside``, which usable F0 lie outside the range that training saw, and ``sound``: whether
    all are usable and none is outside.
    """
    window, observed = slot.values, slot.observed
    if slot.interpolated:
        # Interpolation passes over frames that were not observed; a grid point counts as observed when a sample lies
        # at most one and a half periods of the slower of the two clocks before it.
        stamps = slot.stamps[observed]
        window = window_on_grid(window[observed], timestamps_s=stamps, onset_s=slot.anchor_s, recipe=recipe)
        grid = slot.anchor_s - np.arange(recipe.baseline_frames, 0, -1) / recipe.rate_hz
        before = np.maximum(np.searchsorted(stamps, grid, side="right") - 1, 0)
        reach = 1.5 * max(1 / recipe.rate_hz, float(np.median(np.diff(slot.stamps))))
        observed = grid - stamps[before] <= reach
    slot.f0, slot.usable = write_baseline(
        window,
        recipe=recipe,
        out=out,
        f0_minimum=slot.f0_minimum,
        observed=None if observed.all() else observed,
    )
    slot.outside = slot.usable & ((slot.f0 < slot.f0_lowest) | (slot.f0 > slot.f0_highest))
    slot.sound = bool(slot.usable.all()) and not slot.outside.any()
    slot.level = f0_level(slot.f0, slot.usual_f0)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Preparation:
    """A size of question that will come: the neurons' vectors, and how many stimuli and rows."""

    vectors: NDArray[np.float32]
    stimuli: int
    rows: int


class Inference:
    """Starts the thread; ``on_done`` is called in that thread after each slot, and once after the warm-up.

    ``provider`` and ``threads`` are as `Network` takes them; once ``ready``, ``provider`` and ``threads`` tell what runs.
    """

    def __init__(self, bundle: Bundle, *, provider: Provider, threads: int, on_done: Callable[[], None]) -> None:
        self._bundle, self._asked, self._on_done = bundle, provider, on_done
        self._todo: SimpleQueue[Slot | _Preparation | None] = SimpleQueue()
        self._done: SimpleQueue[Slot] = SimpleQueue()
        self._preparations: deque[_Preparation] = deque()
        self._busy_s = 0.0
        self.ready = threading.Event()
        self.failure: Exception | None = None
        self.provider, self.threads = "none", threads
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)

    def start(self) -> None:
        """Load the graph and warm up, in the thread."""
        self._thread.start()

    def submit(self, slot: Slot) -> None:
        """Hand a filled slot over; it comes back from `collect`."""
        slot.submitted_ns = time.perf_counter_ns()
        self._todo.put(slot)

    def collect(self) -> Slot | None:
        """The next finished slot, or None."""
        return None if self._done.empty() else self._done.get()

    def prepare(self, vectors: NDArray[np.float32], *, stimuli: int, rows: int) -> None:
        """Questions of this size are to come, about neurons of these very ``vectors``: make ready when nothing else waits."""
        self._todo.put(_Preparation(vectors=vectors, stimuli=stimuli, rows=rows))

    def stop(self, timeout_s: float) -> bool:
        """End the thread after what was submitted; False if it still runs after ``timeout_s``."""
        self._todo.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            network = Network(self._bundle, provider=self._asked, threads=self.threads)
            self.provider, self.threads = network.provider, network.threads
            self._warm_up(network)
        except Exception as error:
            self.failure = error
            self._on_done()
            return
        self.ready.set()
        self._on_done()
        while (slot := self._next(network)) is not None:
            try:
                slot.failure = None
                self._answer(network, slot)
            except Exception as error:
                _log.exception("inference failed")
                slot.failure = f"{type(error).__name__}: {error}"
            slot.done_ns = time.perf_counter_ns()
            self._done.put(slot)
            self._on_done()
        network.close()

    def _next(self, network: Network) -> Slot | None:
        """The next slot, None at the end; while there is none, prepare what is to come and keep a GPU warm."""
        self._busy_s = time.monotonic()
        while True:
            try:
                item = self._todo.get(timeout=self._patience_s(network))
            except Empty:
                self._use_idle_time(network)
                continue
            if isinstance(item, _Preparation):
                self._preparations.append(item)
                continue
            return item

    def _patience_s(self, network: Network) -> float | None:
        if self._preparations:
            return 0.0
        keeps_warm = network.provider == "cuda" and time.monotonic() - self._busy_s < PULSE_FOR_S
        return PULSE_S if keeps_warm else None

    def _use_idle_time(self, network: Network) -> None:
        try:
            if self._preparations:
                ready = self._preparations.popleft()
                network.prepare(ready.vectors, stimuli=ready.stimuli, rows=ready.rows)
            else:
                network.pulse()
        except Exception:
            # The question itself will meet the same error, and tell who asked. Until then no pulse fails again.
            _log.exception("the graph could not be made ready for a question")
            self._busy_s = -PULSE_FOR_S

    def _warm_up(self, network: Network) -> None:
        recipe, stimuli = self._bundle.recipe, self._bundle.manifest.stimulus_recipe
        neuron = self._bundle.neurons([""], unknown="mark")
        slot = Slot()
        slot.room(recipe.baseline_frames, 1).fill(100.0)
        slot.observed = np.ones(recipe.baseline_frames, np.bool_)
        slot.neuron, slot.f0_minimum, slot.usual_f0 = neuron.vectors, neuron.f0_minimum, neuron.usual_f0
        slot.f0_lowest, slot.f0_highest = neuron.f0_range.T
        slot.stimulus = self._bundle.stimulus_from_features(category=stimuli.categories[0], features={})[None]
        slot.row_neuron = slot.row_stimulus = np.zeros(1, np.int64)
        for _ in range(WARM_UP_RUNS):
            self._answer(network, slot)

    def _answer(self, network: Network, slot: Slot) -> None:
        population = network.place(slot.neuron)
        with np.errstate(all="ignore"):  # a client may send infinities; they end as an invalid neuron
            write_input(slot, self._bundle.recipe, out=population.baseline)
        population.level[:] = slot.level
        if slot.keep_baseline:
            slot.baseline = population.baseline.copy()
        found = network.ask(
            population, stimulus=slot.stimulus, row_neuron=slot.row_neuron, row_stimulus=slot.row_stimulus
        )
        slot.probability = self._bundle.probability(found.logit)
        slot.response = slot.low = slot.high = None
        if slot.forecast:
            slot.response = found.response
            slot.low, slot.high = self._bundle.interval(found.response, found.spread)
