"""The inference thread: owns the runtime session, turns a captured window into probabilities and a forecast.

The loop fills a `Slot` (its window memory is allocated once and reused), `submit`s it and goes on; the thread computes dF/F,
runs the graph and hands the slot back. Two slots: while one is computed, the next is filled.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from quantformer.bundle import Bundle
from quantformer.errors import ProviderError
from quantformer.signal import SignalRecipe, f0_level, window_on_grid, write_baseline

_log = logging.getLogger(__name__)

Provider = Literal["auto", "cpu", "cuda"]
_RUNTIME_NAME = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
#: Runs of the graph before the engine calls itself ready.
WARM_UP_RUNS = 5


class Slot:
    """One question on its way through inference: the captured window, what to ask of it, and then the results.

    ``values`` float32 ``(frames, neurons)``, ``stamps`` s and ``observed`` are the captured frames; ``anchor_s`` is the
    onset frame's stamp, the origin of the grid where the rate is ``interpolated``. Row ``b`` of the graph asks about
    ``row_neuron[b]`` and ``row_stimulus[b]``.
    """

    def __init__(self) -> None:
        self._memory = np.empty(0, np.float32)
        self._dff = np.empty(0, np.float32)
        self.values = np.empty((0, 0), np.float32)
        self.stamps = np.empty(0, np.float64)
        self.observed = np.empty(0, np.bool_)
        self.question: Any = None
        self.anchor_s = 0.0
        self.interpolated = False
        self.neuron = np.empty((0, 2, 0), np.float32)
        self.f0_minimum = np.empty(0, np.float64)
        self.usual_f0 = np.empty(0, np.float64)
        self.stimulus = np.empty((0, 2, 0), np.float32)
        self.row_neuron = np.empty(0, np.int64)
        self.row_stimulus = np.empty(0, np.int64)
        self.forecast = True
        self.submitted_ns = self.done_ns = 0
        self.failure: str | None = None
        self.baseline = np.empty((0, 0), np.float32)
        self.level = np.empty((0, 2), np.float32)
        self.f0 = np.empty(0, np.float64)
        self.usable = np.empty(0, np.bool_)
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

    def dff_room(self, neurons: int, frames: int) -> NDArray[np.float32]:
        """Memory ``(neurons, frames)`` for ``baseline``, which becomes it."""
        if self._dff.size < frames * neurons:
            self._dff = np.empty(frames * neurons, np.float32)
        self.baseline = self._dff[: frames * neurons].reshape(neurons, frames)
        return self.baseline


def write_input(slot: Slot, recipe: SignalRecipe) -> None:
    """Turn the captured frames into the network's input: fills ``baseline``, ``level``, ``f0`` and ``usable``."""
    out = slot.dff_room(slot.values.shape[1], recipe.baseline_frames)
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
    slot.level = f0_level(slot.f0, slot.usual_f0)


class Inference:
    """Starts the thread; ``on_done`` is called in that thread after each slot, and once after the warm-up.

    ``provider`` ``auto`` takes CUDA where the runtime lists it. ``threads`` is the CPU threads of one run.
    """

    def __init__(self, bundle: Bundle, *, provider: Provider, threads: int, on_done: Callable[[], None]) -> None:
        self._bundle, self._asked, self._threads, self._on_done = bundle, provider, threads, on_done
        self._todo: SimpleQueue[Slot | None] = SimpleQueue()
        self._done: SimpleQueue[Slot] = SimpleQueue()
        self.ready = threading.Event()
        self.failure: Exception | None = None
        self.provider = "none"
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

    def stop(self, timeout_s: float) -> bool:
        """End the thread after what was submitted; False if it still runs after ``timeout_s``."""
        self._todo.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            session = open_session(self._bundle, provider=self._asked, threads=self._threads)
            self.provider = "cuda" if session.get_providers()[0] == _RUNTIME_NAME["cuda"] else "cpu"
            self._warm_up(session)
        except Exception as error:
            self.failure = error
            self._on_done()
            return
        self.ready.set()
        self._on_done()
        while (slot := self._todo.get()) is not None:
            try:
                slot.failure = None
                self._answer(session, slot)
            except Exception as error:
                _log.exception("inference failed")
                slot.failure = f"{type(error).__name__}: {error}"
            slot.done_ns = time.perf_counter_ns()
            self._done.put(slot)
            self._on_done()

    def _warm_up(self, session: Any) -> None:
        recipe, stimuli = self._bundle.recipe, self._bundle.manifest.stimulus_recipe
        neuron = self._bundle.neurons([""], unknown="mark")
        slot = Slot()
        slot.room(recipe.baseline_frames, 1).fill(100.0)
        slot.observed = np.ones(recipe.baseline_frames, np.bool_)
        slot.neuron, slot.f0_minimum, slot.usual_f0 = neuron.vectors, neuron.f0_minimum, neuron.usual_f0
        slot.stimulus = self._bundle.stimulus_from_features(category=stimuli.categories[0], features={})[None]
        slot.row_neuron = slot.row_stimulus = np.zeros(1, np.int64)
        for _ in range(WARM_UP_RUNS):
            self._answer(session, slot)

    def _answer(self, session: Any, slot: Slot) -> None:
        with np.errstate(all="ignore"):  # a client may send infinities; they end as an invalid neuron
            write_input(slot, self._bundle.recipe)
        logit, response, spread = session.run(
            ["logit", "response", "spread"],
            {
                "baseline": slot.baseline,
                "level": slot.level,
                "neuron": slot.neuron,
                "stimulus": slot.stimulus,
                "row_neuron": slot.row_neuron,
                "row_stimulus": slot.row_stimulus,
            },
        )
        slot.probability = self._bundle.probability(logit)
        slot.response = slot.low = slot.high = None
        if slot.forecast:
            slot.response = response
            slot.low, slot.high = self._bundle.interval(response, spread)


def open_session(bundle: Bundle, *, provider: Provider, threads: int) -> Any:
    """An onnxruntime session of the bundle's verified graph on the asked provider.

    Raises:
        ProviderError: the asked provider is not there, or is not the one that runs.
    """
    import onnxruntime

    there = onnxruntime.get_available_providers()
    name = provider if provider != "auto" else ("cuda" if _RUNTIME_NAME["cuda"] in there else "cpu")
    wanted = _RUNTIME_NAME[name]
    if wanted not in there:
        raise ProviderError(
            f"provider {name} was asked for, this onnxruntime has {', '.join(there)}; "
            "install 'quantformer[gpu]' in place of 'quantformer[serve]', or set --provider cpu"
        )
    if name == "cuda":
        # The gpu extra brings CUDA and cuDNN as Python packages, where the loader does not look by itself.
        onnxruntime.preload_dlls()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    # A thread that spins between frames would take the core that the loop needs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    providers = [wanted] if name == "cpu" else [wanted, _RUNTIME_NAME["cpu"]]
    session = onnxruntime.InferenceSession(bundle.graph, sess_options=options, providers=providers)
    running = session.get_providers()[0]
    if running != wanted:
        if provider == "auto":
            _log.warning("CUDA is listed but %s runs; check the driver and the CUDA libraries", running)
            return session
        raise ProviderError(
            f"provider {name} was asked for, but {running} runs; check the driver and the CUDA libraries, "
            "or set --provider cpu"
        )
    return session
