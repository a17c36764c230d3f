"""Ask a running service what a first visitor would, with the light client.

    python deploy/smoke.py [--host HOST] [--http-port PORT] [--token TOKEN]

Health, readiness, version, bundle, and one prediction without a session. Exit status 0: every answer was right.
"""

from __future__ import annotations

import argparse
import os
import sys

from quantformer_client import ClientError, Rest
from quantformer_client.wire import Stimulus

#: Fluorescence that is above any usable F0, so that there is a forecast; it need not look like a neuron.
LEVEL = 1000.0


class SmokeError(Exception):
    """The service answered, and wrongly."""


def expect(condition: bool, what: str, found: object) -> None:
    """Raise `SmokeError` with what was found unless ``condition`` holds; say so if it does."""
    if not condition:
        raise SmokeError(f"expected {what}, found {found}")
    print(f"{what}: {found}", flush=True)


def ask(rest: Rest) -> None:
    """Ask everything.

    Raises:
        SmokeError: an answer is not what it must be.
        ClientError: there was none, or a refusal.
    """
    health = rest.health()
    expect(health["alive"] is True, "alive", health)
    ready = rest.ready()
    expect(ready["ready"] is True, "ready", ready)
    version = rest.version()
    expect(bool(version["software"]) and bool(version["wire"]), "versions of the software and the wire", version)
    bundle = rest.bundle()
    expect(len(bundle["hash"]) == 64, "a bundle with its hash", bundle["hash"])

    manifest = bundle["manifest"]
    neurons = manifest["neuron_ids"][:2]
    stimulus = next(iter(manifest["stimuli"]))
    frames, steps = manifest["signal"]["baseline_frames"], manifest["signal"]["response_frames"]
    predicted = rest.predict(
        neurons=neurons,
        stimuli=[Stimulus(stimulus_id=stimulus)],
        fluorescence=[[LEVEL + frame % 7 for frame in range(frames)] for _ in neurons],
    )
    expect(predicted["bundle"] == bundle["hash"], "a prediction of that bundle", predicted["bundle"])
    (probabilities,) = predicted["probability"]
    expect(
        len(probabilities) == len(neurons) and all(0.0 <= p <= 1.0 for p in probabilities),
        f"a probability for each of {len(neurons)} neurons and {stimulus!r}",
        probabilities,
    )
    (responses,) = predicted["forecast"]["response"]
    lengths = [len(response) for response in responses]
    expect(lengths == [steps] * len(neurons), f"a forecast of {steps} frames for each", lengths)


def main() -> int:
    """Ask, and say what went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1", help="(default %(default)s)")
    parser.add_argument("--http-port", type=int, default=7410, help="(default %(default)s)")
    parser.add_argument("--token", default=os.environ.get("QUANTFORMER_TOKEN", ""), help="(default: QUANTFORMER_TOKEN)")
    given = parser.parse_args()
    try:
        with Rest(host=given.host, port=given.http_port, token=given.token) as rest:
            ask(rest)
    except (SmokeError, ClientError) as error:
        print(f"smoke test failed: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
