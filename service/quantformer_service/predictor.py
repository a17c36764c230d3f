"""The process behind ``POST /v1/predict``: predictions without a session, at low priority.

It reads requests from stdin and writes replies to stdout, each a u32 length and JSON, and ends when stdin does. It is the
gateway's child; the engine does not know of it.
"""

from __future__ import annotations

import signal
import struct
import sys
from typing import Annotated, Any, BinaryIO, Literal

import msgspec
import numpy as np

from quantformer.bundle import Bundle, load_bundle
from quantformer.errors import DataError
from quantformer.population_level import joined_level
from quantformer.signal import f0_level, write_baseline
from quantformer_client import wire
from quantformer_service.buffers import FORECAST, PROBABILITY
from quantformer_service.forms import Detail, Forecast
from quantformer_service.process import give_way
from quantformer_service.questions import alternatives
from quantformer_service.refusal import Refusal
from quantformer_service.runtime import open_session
from quantformer_service.settings import Settings

LENGTH = struct.Struct("<I")
#: The lowest priority there is.
NICENESS = 19


class Predict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to predict: corrected ``fluorescence``, one row a neuron of the bundle's baseline frames, oldest first, for
    every one of ``stimuli``. ``unknown`` neurons are refused, or served by the trained unknown vector and marked.
    """

    neurons: wire.control.RoiIds
    stimuli: Annotated[list[wire.Stimulus], msgspec.Meta(min_length=1, max_length=256)]
    fluorescence: list[list[float | None]]
    unknown: Literal["refuse", "mark"] = "refuse"
    detail: Detail = "forecast"


class Predicted(msgspec.Struct, frozen=True, kw_only=True):
    """Probabilities ``[stimulus][neuron]`` and the forecast; act only on neurons that are ``valid``."""

    bundle: str
    stimuli: tuple[str, ...]
    neurons: list[str]
    known: list[bool]
    valid: list[bool]
    probability: list[Any]
    forecast: Forecast | None = None


class Failed(msgspec.Struct, frozen=True, kw_only=True):
    """A request that cannot be served."""

    code: str
    message: str


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """What goes back to the gateway: one of the two. The first reply, with neither, says that the process is ready."""

    predicted: Predicted | None = None
    failed: Failed | None = None


class Predictor:
    """A bundle with a session of the runtime on the CPU, whose one thread the engine's outranks."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._sessions = {
            forecast: open_session(bundle, provider="cpu", outputs=outputs)
            for forecast, outputs in ((True, None), (False, [PROBABILITY]))
        }

    def predict(self, asked: Predict) -> Predicted:
        """Predict.

        Raises:
            Refusal: rows of the wrong length or number, or a stimulus that the bundle does not know.
            DataError: a neuron that the bundle does not know.
        """
        recipe = self._bundle.recipe
        n, frames = len(asked.neurons), recipe.baseline_frames
        lengths = {len(row) for row in asked.fluorescence}
        if len(asked.fluorescence) != n or lengths != {frames}:
            raise Refusal(
                wire.ErrorCode.BAD_QUESTION,
                f"fluorescence has {len(asked.fluorescence)} rows of {sorted(lengths)} values, "
                f"expected {n} (one a neuron) of {frames}",
            )
        rows = self._bundle.neurons(asked.neurons, unknown=asked.unknown)
        shown = alternatives(self._bundle, list(asked.stimuli))
        with np.errstate(over="ignore"):
            window = np.array(asked.fluorescence, dtype=np.float32).T
        dff = np.empty((n, frames), np.float32)
        f0, valid = write_baseline(window, recipe=recipe, out=dff, f0_minimum=rows.f0_minimum)
        s = len(shown.labels)
        wanted = asked.detail == "forecast"
        logit, *rest = self._sessions[wanted].run(
            [PROBABILITY, *FORECAST] if wanted else [PROBABILITY],
            {
                "baseline": dff,
                "level": joined_level(f0_level(f0, rows.usual_f0), rows.population.of(window)),
                "neuron": rows.vectors,
                "stimulus": shown.vectors,
                "row_neuron": np.tile(np.arange(n, dtype=np.int64), s),
                "row_stimulus": np.repeat(np.arange(s, dtype=np.int64), n),
            },
        )
        forecast = None
        if wanted:
            response, spread = rest
            low, high = self._bundle.interval(response, spread)
            shape = (s, n, recipe.response_frames)
            parts = {"response": response, "low": low, "high": high}
            forecast = Forecast(**{name: part.reshape(shape).tolist() for name, part in parts.items()})
        return Predicted(
            bundle=self._bundle.hash,
            stimuli=shown.labels,
            neurons=list(asked.neurons),
            known=rows.known.tolist(),
            valid=valid.tolist(),
            probability=self._bundle.probability(logit).reshape(s, n).tolist(),
            forecast=forecast,
        )


def answer(predictor: Predictor, request: bytes) -> Reply:
    """The reply to one request, whatever it is."""
    try:
        return Reply(predicted=predictor.predict(msgspec.json.decode(request, type=Predict)))
    except Refusal as error:
        return Reply(failed=Failed(code=error.code, message=str(error)))
    except DataError as error:
        return Reply(failed=Failed(code=wire.ErrorCode.UNKNOWN_NEURON, message=str(error)))
    except Exception as error:
        return Reply(failed=Failed(code="predict_failed", message=f"{type(error).__name__}: {error}"))


def main() -> None:
    """Serve requests until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    give_way(NICENESS)
    inbox, outbox = sys.stdin.buffer, sys.stdout.buffer
    predictor = Predictor(load_bundle(Settings.from_environment().bundle))
    _write(outbox, Reply())
    while len(prefix := inbox.read(LENGTH.size)) == LENGTH.size:
        _write(outbox, answer(predictor, inbox.read(LENGTH.unpack(prefix)[0])))


def _write(outbox: BinaryIO, reply: Reply) -> None:
    data = msgspec.json.encode(reply)
    outbox.write(LENGTH.pack(len(data)) + data)
    outbox.flush()


if __name__ == "__main__":
    main()
