"""Tests of what a figure says it was made with."""

from __future__ import annotations

import os
import platform

import numpy as np
import torch

from quantformer_training.machine import PACKAGES, machine, processor, software


def test_a_machine_is_named_with_its_processor_and_cores() -> None:
    assert machine().startswith(processor())
    assert f"of {os.cpu_count()} cores" in machine()


def test_a_gpu_that_was_not_used_is_not_named() -> None:
    assert machine(gpu=False).endswith(platform.system())
    more = machine().removeprefix(machine(gpu=False))
    assert more == (f", {torch.cuda.get_device_name(0)}" if torch.cuda.is_available() else "")


def test_versions_are_those_that_run_and_a_missing_package_is_said() -> None:
    found = software()
    assert found.keys() == {"python", *PACKAGES}
    assert found["python"] == platform.python_version()
    assert found["numpy"] == np.__version__
    assert software(["no-such-package"])["no-such-package"] == "not installed"
