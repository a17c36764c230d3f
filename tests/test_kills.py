"""Kills of a real service that records: it comes back, its client hears of it, and what was acknowledged is there."""

from __future__ import annotations

from pathlib import Path

import pytest
from running_service import ROIS, RunningService

from quantformer_cli.benchmark.kills import Killer, kill_again_and_again
from quantformer_cli.benchmark.service import running
from quantformer_cli.benchmark.survival import survival
from quantformer_cli.benchmark.worker import WorkerError


def ports(service: RunningService) -> dict[str, int]:
    return {"http_port": service.http, "zmq_port": service.zmq, "pub_port": service.pub, "tcp_port": service.tcp}


@pytest.mark.slow
def test_engine_and_recorder_are_killed_and_nothing_acknowledged_is_gone(
    tiny_bundle_path: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    # Its path is short: a local socket lies in it.
    recordings = tmp_path_factory.mktemp("recordings")
    with RunningService(
        tiny_bundle_path, folder=tmp_path, record=recordings, restart_limit=1000, restart_window_s=1
    ) as service:
        target = running(
            bundle=tiny_bundle_path, host="127.0.0.1", token="", root=service.process.pid, **ports(service)
        ).target
        said: list[str] = []
        killed, acknowledged = kill_again_and_again(target, times=5, rois=ROIS, rate_hz=60.0, seed=1, say=said.append)
    assert len(killed.engine_ms) == len(killed.recorder_ms) == 5
    assert min(*killed.engine_ms, *killed.recorder_ms) > 0
    # Every engine that the client came to had an epoch of its own, no session of before, and was disarmed.
    assert killed.orphaned == killed.session_lost == killed.opened - 1 > 0
    assert killed.disarmed == killed.opened == killed.epochs <= 6
    assert 0 < killed.armed <= killed.opened
    assert killed.sent > 0
    assert len(said) == 1
    left = survival(recordings, acknowledged)
    assert left.files >= 6
    assert left.frames > 0
    assert (left.damages, left.missing) == ([], {})


def test_a_service_that_records_nothing_is_not_killed(tiny_bundle_path: Path, tmp_path: Path) -> None:
    with RunningService(tiny_bundle_path, folder=tmp_path) as service:
        subject = running(bundle=None, host="127.0.0.1", token="", root=service.process.pid, **ports(service))
        engine = service.child("engine").pid
        with pytest.raises(WorkerError, match="no engine and recorder"):
            Killer(subject.target)
        assert service.child("engine").pid == engine
