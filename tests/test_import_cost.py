"""What importing the light client costs, counted in modules: a count is the same on every machine, a time is not."""

from __future__ import annotations

import subprocess
import sys

import pytest
from running_service import PATIENCE_S, clean_environment

FOUR = "import numpy, zmq, httpx, msgspec"


def modules(statement: str) -> int:
    """How many modules a fresh interpreter has loaded after a statement."""
    done = subprocess.run(
        [sys.executable, "-c", f"{statement}\nimport sys\nprint(len(sys.modules))"],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env=clean_environment(),
        check=True,
    )
    return int(done.stdout)


@pytest.fixture(scope="module")
def bare() -> int:
    return modules("pass")


def test_importing_the_client_costs_less_than_its_four_packages(bare: int) -> None:
    four = modules(FOUR) - bare
    assert four > 100
    assert modules("import quantformer_client") - bare <= 0.2 * four  # names are imported when first used


@pytest.mark.parametrize("names", ["Microscope, Controller, Player, Rest, AsyncRest, Watch, wire", "*"])
def test_using_all_of_it_costs_at_most_half_as_much_again(bare: int, names: str) -> None:
    four = modules(FOUR) - bare
    assert modules(f"from quantformer_client import {names}") - bare <= 1.5 * four


def test_rest_alone_brings_no_socket_library(bare: int) -> None:
    statement = "import sys\nfrom quantformer_client.errors import ClientError\nassert 'zmq' not in sys.modules"
    assert modules(statement) - bare < 60
