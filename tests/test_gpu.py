"""The GPU's sensors: read where there is one, absent with the reason where there is none."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantformer_service.gpu import THROTTLES, Gpu, throttles

PATIENCE_S = 60.0


def test_the_sensors_are_read_or_their_absence_is_told() -> None:
    gpu = Gpu(period_s=0.01)
    assert (gpu.read(), gpu.absent) == (None, "not read yet")
    gpu.start()
    end = time.monotonic() + PATIENCE_S
    while gpu.read() is None and gpu.absent == "not read yet":
        assert time.monotonic() < end
        time.sleep(0.01)
    state = gpu.read()
    if state is None:
        assert "NVML" in gpu.absent or "nvidia-ml-py is not installed" in gpu.absent
    else:
        assert gpu.absent == ""
        assert state.name
        assert state.temperature_c is None or 0 < state.temperature_c < 130
    gpu.stop()
    assert gpu.read() == state or state is not None


def test_a_gpu_that_is_not_there_is_told() -> None:
    gpu = Gpu(index=99)
    gpu.start()
    gpu.stop()
    assert gpu.read() is None
    assert gpu.absent not in ("", "not read yet")


def test_without_the_package_the_cure_is_named() -> None:
    program = (
        "import sys; sys.modules['pynvml'] = None\n"
        "from quantformer_service.gpu import Gpu\n"
        "gpu = Gpu(); gpu.start(); gpu.stop(); print(gpu.read(), gpu.absent)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "None nvidia-ml-py is not installed; install 'quantformer[gpu]'"


def test_stopping_twice_and_before_the_start_is_quiet() -> None:
    gpu = Gpu()
    gpu.stop()
    gpu.stop()
    assert gpu.read() is None


@pytest.mark.parametrize(
    ("reasons", "words"),
    [
        (0x0, ()),
        (0x1, ()),  # idle
        (0x2, ()),  # the user's own application clocks
        (0x4, ("power cap",)),
        (0x8 | 0x40, ("hardware slowdown", "hardware thermal slowdown")),
        (0x20, ("software thermal slowdown",)),
        (0x80, ("hardware power brake",)),
    ],
)
def test_reasons_that_slow_the_gpu_are_told_in_words(reasons: int, words: tuple[str, ...]) -> None:
    assert throttles(reasons) == words


@given(st.integers(0, (1 << 64) - 1))
def test_bits_that_nobody_knows_are_passed_over(reasons: int) -> None:
    assert throttles(reasons) == throttles(reasons & sum(THROTTLES))


def test_the_words_stand_for_the_bits_of_nvml() -> None:
    nvml = pytest.importorskip("pynvml")
    names = {
        "power cap": nvml.nvmlClocksEventReasonSwPowerCap,
        "hardware slowdown": nvml.nvmlClocksThrottleReasonHwSlowdown,
        "sync boost": nvml.nvmlClocksEventReasonSyncBoost,
        "software thermal slowdown": nvml.nvmlClocksEventReasonSwThermalSlowdown,
        "hardware thermal slowdown": nvml.nvmlClocksThrottleReasonHwThermalSlowdown,
        "hardware power brake": nvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown,
    }
    assert {word: bit for bit, word in THROTTLES.items()} == names
