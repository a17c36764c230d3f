"""The inference thread: owns the network, turns captured windows into probabilities and forecasts.

The loop fills a `Slot` (its window memory is allocated once and reused), `submit`s it and goes on. Whenever the thread is free
it takes the questions that wait by then as one batch (`quantformer_service.batch`): it writes dF/F of each into the graph's
inputs, its lanes run the graph, and each slot is handed back as soon as its own rows are computed, in the order in which they
came. While one batch is computed, the slots of the next are filled.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantformer.bundle import Bundle
from quantformer.config import LEVEL_QUANTITIES
from quantformer.population_level import PopulationLevel, joined_level
from quantformer.signal import SignalRecipe, f0_level, window_on_grid, write_baseline
from quantformer_service.batch import cost_of, first_batch
from quantformer_service.buffers import Bucket, Population, Results
from quantformer_service.network import Network
from quantformer_service.proof import prove
from quantformer_service.rhythm import Rhythm
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
    ``row_neuron[b]`` and ``row_stimulus[b]``. ``baseline`` is handed back only if ``keep_baseline``. ``cost_before`` is the
    `cost` of what was computed before it in its batch. ``response`` and ``scale``, of its interval, are written to ``places``,
    in this order, where the loop has told of them by then.
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
        self.population = PopulationLevel.of_nobody()
        #: Of each neuron, or one for all: until it is told, no F0 is outside.
        self.f0_lowest, self.f0_highest = np.array([-np.inf]), np.array([np.inf])
        self.stimulus = np.empty((0, 2, 0), np.float32)
        self.row_neuron = np.empty(0, np.int64)
        self.row_stimulus = np.empty(0, np.int64)
        self.forecast = True
        self.keep_baseline = True
        self.submitted_ns = self.done_ns = 0
        self.cost_before = 0
        self.failure: str | None = None
        self.baseline = np.empty((0, 0), np.float32)
        self.level = np.empty((0, LEVEL_QUANTITIES), np.float32)
        self.f0 = np.empty(0, np.float64)
        self.usable = np.empty(0, np.bool_)
        self.outside = np.empty(0, np.bool_)
        self.sound = False
        self.probability = np.empty(0, np.float32)
        self.response: NDArray[np.float32] | None = None
        self.scale: NDArray[np.float32] | None = None
        self.places: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None

    @property
    def in_place(self) -> bool:
        """Whether inference wrote its forecast to ``places``."""
        return self.places is not None and self.response is self.places[0]

    @property
    def cost(self) -> int:
        """What it takes inference, as `cost_of` counts."""
        return cost_of(len(self.row_neuron), forecast=self.forecast)

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
    population = slot.population.of(window, observed=observed)
    slot.level = joined_level(f0_level(slot.f0, slot.usual_f0), population)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Preparation:
    """A size of question that will come: the neurons' vectors, and how many stimuli and rows."""

    vectors: NDArray[np.float32]
    stimuli: int
    rows: int
    forecast: bool


class Inference:
    """Starts the thread; ``on_done`` is called after slots came back, and once after the warm-up, in whichever thread.

    ``provider`` and ``threads`` are as `Network` takes them; once ``ready``, ``provider`` and ``threads`` tell what runs.
    """

    def __init__(self, bundle: Bundle, *, provider: Provider, threads: int, on_done: Callable[[], None]) -> None:
        self._bundle, self._asked, self._on_done = bundle, provider, on_done
        self._todo: SimpleQueue[Sequence[Slot] | _Preparation | None] = SimpleQueue()
        self._waiting: deque[Slot] = deque()
        self._batch: deque[Slot] = deque()
        self._handing_back = threading.Lock()
        self._ending = False
        self._done: SimpleQueue[Slot] = SimpleQueue()
        self._preparations: deque[_Preparation] = deque()
        self._busy_s, self._rhythm = 0.0, Rhythm()
        self.ready = threading.Event()
        self.failure: Exception | None = None
        self.provider, self.threads = "none", threads
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)

    def start(self) -> None:
        """Load the graph and warm up, in the thread."""
        self._thread.start()

    def submit(self, *slots: Slot) -> None:
        """Hand filled slots over, all at once and in their order; they come back from `collect` in that order."""
        now_ns = time.perf_counter_ns()
        for slot in slots:
            slot.submitted_ns = now_ns
        self._todo.put(slots)

    def collect(self) -> Slot | None:
        """The next finished slot, or None."""
        return None if self._done.empty() else self._done.get()

    def prepare(self, vectors: NDArray[np.float32], *, stimuli: int, rows: int, forecast: bool) -> None:
        """Questions of this size are to come, about neurons of these very ``vectors``: make ready when nothing else waits."""
        self._todo.put(_Preparation(vectors=vectors, stimuli=stimuli, rows=rows, forecast=forecast))

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
            # What was not compared anywhere else: float32 on the CPU is what the bundle's own parity is about.
            if network.provider != "cpu" or self._bundle.precision != "float32":
                told = ", ".join(map(str, prove(network, self._bundle)))
                _log.info("%s in %s against float32 on the CPU: %s", network.provider, self._bundle.precision, told)
        except Exception as error:
            self.failure = error
            self._on_done()
            return
        self.ready.set()
        self._on_done()
        while batch := self._next(network):
            self._answer(network, batch)
        network.close()

    def _next(self, network: Network) -> list[Slot]:
        """The next batch, empty at the end; while nothing waits, prepare what is to come and keep a GPU warm."""
        self._busy_s = time.monotonic()
        while not self._waiting and not self._ending:
            try:
                self._sort(self._todo.get(timeout=self._patience_s(network)))
            except Empty:
                self._use_idle_time(network)
        while not self._todo.empty():
            self._sort(self._todo.get())
        return first_batch(self._waiting)

    def _sort(self, item: Sequence[Slot] | _Preparation | None) -> None:
        if item is None:
            self._ending = True
        elif isinstance(item, _Preparation):
            self._preparations.append(item)
        else:
            self._waiting.extend(item)

    def _patience_s(self, network: Network) -> float | None:
        if self._preparations:
            return 0.0
        keeps_warm = network.provider == "cuda" and time.monotonic() - self._busy_s < PULSE_FOR_S
        return PULSE_S if keeps_warm else None

    def _use_idle_time(self, network: Network) -> None:
        try:
            if self._preparations:
                ready = self._preparations.popleft()
                network.prepare(ready.vectors, stimuli=ready.stimuli, rows=ready.rows, forecast=ready.forecast)
            elif not self._rhythm.is_near(time.perf_counter_ns()):
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
        slot.population = neuron.population
        slot.stimulus = self._bundle.stimulus_from_features(category=stimuli.categories[0], features={})[None]
        slot.row_neuron = slot.row_stimulus = np.zeros(1, np.int64)
        for _ in range(WARM_UP_RUNS):
            population = self._placed(network, slot)
            found = network.ask(
                population, stimulus=slot.stimulus, row_neuron=slot.row_neuron, row_stimulus=slot.row_stimulus
            )
            self._read(slot, found)

    def _answer(self, network: Network, batch: Sequence[Slot]) -> None:
        """Compute a batch. What one question meets is its own failure; each goes back when it and those before it are done."""
        self._rhythm.asked(batch[0].submitted_ns)
        for slot in batch:
            slot.failure, slot.done_ns = None, 0
        self._batch.extend(batch)
        for slot in batch:
            try:
                self._begin(network, slot)
            except Exception as error:
                self._end(slot, error)
        network.end()

    def _begin(self, network: Network, slot: Slot) -> None:
        def then(bucket: Bucket, error: Exception | None) -> None:
            try:
                if error is None:
                    self._read(slot, bucket.results())
            except Exception as raised:
                error = raised
            self._end(slot, error)

        network.begin(
            self._placed(network, slot),
            stimulus=slot.stimulus,
            row_neuron=slot.row_neuron,
            row_stimulus=slot.row_stimulus,
            then=then,
            forecast=slot.forecast,
        )

    def _placed(self, network: Network, slot: Slot) -> Population:
        """The neurons' tensors, with the slot's window in them."""
        population = network.place(slot.neuron)
        with np.errstate(all="ignore"):  # a client may send infinities; they end as an invalid neuron
            write_input(slot, self._bundle.recipe, out=population.baseline)
        population.level[:] = slot.level
        if slot.keep_baseline:
            slot.baseline = population.baseline.copy()
        return population

    def _read(self, slot: Slot, found: Results) -> None:
        slot.probability = self._bundle.probability(found.logit)
        slot.response, slot.scale = found.response, None
        if found.response is None or found.spread is None:
            return
        slot.scale = self._bundle.interval_scale(found.spread)
        # Read once: the loop may lay the answer out in this very moment, and then copies what is found.
        places = slot.places
        if places is not None:
            places[0][:], places[1][:] = found.response, slot.scale
            slot.response, slot.scale = places

    def _end(self, slot: Slot, error: Exception | None) -> None:
        """A slot is done; it and what waited for it goes back. Called in whichever lane was the last."""
        if error is not None:
            _log.error("inference failed", exc_info=error)
            slot.failure = f"{type(error).__name__}: {error}"
        with self._handing_back:
            slot.done_ns = time.perf_counter_ns()
            first = self._batch[0].done_ns > 0
            while self._batch and self._batch[0].done_ns:
                self._done.put(self._batch.popleft())
        if first:
            self._on_done()
