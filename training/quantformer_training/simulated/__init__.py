"""A simulated mouse visual cortex: seeded, with the truth behind every trace. docs/simulator.md describes the model."""

from quantformer_training.simulated.ceilings import Ceiling, Ceilings, ceilings
from quantformer_training.simulated.mouse import Mouse, MouseConfig
from quantformer_training.simulated.schedule import ALLEN_A, ALLEN_B, ALLEN_C, Block, Schedule, short_schedule
from quantformer_training.simulated.session import (
    SimulatedSession,
    Truth,
    allen_spikes_session,
    is_spikes_file,
    session_from_spikes,
    short_session,
    simulate_container,
    simulate_session,
)

__all__ = [
    "ALLEN_A",
    "ALLEN_B",
    "ALLEN_C",
    "Block",
    "Ceiling",
    "Ceilings",
    "Mouse",
    "MouseConfig",
    "Schedule",
    "SimulatedSession",
    "Truth",
    "allen_spikes_session",
    "ceilings",
    "is_spikes_file",
    "session_from_spikes",
    "short_schedule",
    "short_session",
    "simulate_container",
    "simulate_session",
]
