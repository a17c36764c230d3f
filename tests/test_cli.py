"""The command line's manners, by running the real command."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from running_service import PATIENCE_S, RunningService, clean_environment, command, free_ports, until

from quantformer import __version__
from quantformer_cli.main import VERBS

HOUSE = Path(__file__).resolve().parents[1] / "clients" / "cli" / "quantformer_cli"
PRESENT = [verb for verb in VERBS if (HOUSE / f"{verb.replace('-', '_')}.py").is_file()]


def error_line(done: subprocess.CompletedProcess[str]) -> str:
    """The one line on stderr; nothing is on stdout, and there is no traceback."""
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("quantformer: error: ")
    return lines[0]


def test_version() -> None:
    done = command("--version")
    assert (done.returncode, done.stdout) == (0, f"quantformer {__version__}\n")


def test_every_verb_is_listed() -> None:
    done = command("--help")
    assert done.returncode == 0
    assert all(verb in done.stdout for verb in VERBS)


@pytest.mark.parametrize("verb", PRESENT)
def test_every_verb_has_help_with_an_example_and_needs_no_extra_for_it(verb: str) -> None:
    blocked = "import sys\nfor name in ('torch', 'onnxruntime', 'fastapi', 'uvicorn', 'scipy', 'h5py', 'safetensors'):\n"
    blocked += f"    sys.modules[name] = None\nfrom quantformer_cli.main import main\nsys.exit(main(['{verb}', '--help']))"
    done = subprocess.run(
        [sys.executable, "-c", blocked], capture_output=True, text=True, timeout=PATIENCE_S, env=clean_environment()
    )
    assert done.returncode == 0, done.stderr
    assert f"example: quantformer {verb}" in done.stdout or "example: QUANTFORMER_" in done.stdout
    assert "--debug" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["sevre"], "'serve'"),
        (["config", "shw"], "invalid choice: 'shw'"),
        (["config", "show", "--http-prt", "1"], "--http-prt"),
        (["config", "show", "--http", "1"], "--http"),
        (["config", "show", "--http-port", "99999"], "--http-port: found '99999', expected a whole number from 1 to 65535"),
        (["config", "show", "--config", "none.toml"], "none.toml cannot be read"),
        (["bundle", "verify"], "DIR"),
        (["serve"], "no bundle was given"),
        (["--debug", "serve"], "the verb comes first"),
    ],
)
def test_bad_usage_is_one_line_and_status_2(arguments: list[str], says: str) -> None:
    done = command(*arguments)
    assert done.returncode == 2
    if "--debug" not in arguments:
        assert says in error_line(done)
    assert says in done.stderr


def test_no_verb_shows_help_on_stderr() -> None:
    done = command()
    assert done.returncode == 2
    assert done.stdout == ""
    assert "verbs:" in done.stderr


def test_debug_shows_the_traceback() -> None:
    done = command("bundle", "verify", "nowhere", "--debug")
    assert done.returncode == 3
    assert "Traceback" in done.stderr


def test_config_show_says_where_each_value_came_from(tmp_path: Path) -> None:
    file = tmp_path / "my.toml"
    file.write_text('zmq_port = 9001\ntoken = "hidden"\n')
    done = command("config", "show", "--json", "--config", str(file), "--pub-port", "9002", QUANTFORMER_TCP_PORT="9003")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["zmq_port"] == {"value": 9001, "unit": "", "source": f"file {file}"}
    assert found["pub_port"]["source"] == "flag --pub-port"
    assert found["tcp_port"]["source"] == "environment QUANTFORMER_TCP_PORT"
    assert found["http_port"] == {"value": 7410, "unit": "", "source": "default"}
    assert found["token"]["value"] == "***"


def test_config_show_prints_a_line_a_setting() -> None:
    done = command("config", "show")
    assert "shutdown_s" in done.stdout
    names = {line.split()[0] for line in done.stdout.splitlines()[1:]}
    assert names == set(json.loads(command("config", "show", "--json").stdout))


def test_bundle_verify_and_show(tiny_bundle_path: Path) -> None:
    done = command("bundle", "verify", str(tiny_bundle_path))
    assert done.returncode == 0, done.stderr
    assert "whole" in done.stdout
    shown = command("bundle", "show", str(tiny_bundle_path))
    assert "neurons" in shown.stdout
    manifest = json.loads(command("bundle", "show", str(tiny_bundle_path), "--json").stdout)
    assert manifest["format"] == "quantformer-bundle"


@pytest.mark.parametrize("harm", ["tampered", "truncated", "missing", "newer", "foreign"])
@pytest.mark.parametrize("verb", [["bundle", "verify"], ["serve", "--bundle"]])
def test_a_bad_bundle_is_status_3_with_the_reason(tiny_bundle_path: Path, tmp_path: Path, harm: str, verb: list[str]) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_bundle_path, bundle)
    graph, manifest = bundle / "model.onnx", bundle / "manifest.json"
    if harm == "tampered":
        content = bytearray(graph.read_bytes())
        content[len(content) // 2] ^= 1
        graph.write_bytes(content)
    elif harm == "truncated":
        graph.write_bytes(graph.read_bytes()[:-10])
    elif harm == "missing":
        graph.unlink()
    elif harm == "newer":
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "schema": 99}))
    else:
        manifest.write_text('{"format": "something else", "schema": 1}')
    done = command(*verb, str(bundle))
    assert done.returncode == 3
    expected = {"newer": "schema 99", "foreign": "something else", "missing": "cannot be read"}.get(harm, "SHA-256")
    assert expected in error_line(done)


@pytest.mark.parametrize(
    ("verb", "package", "extra"),
    [(["serve", "--bundle", "."], "fastapi", "serve"), (["bundle", "verify", "."], "safetensors", "serve")],
)
def test_a_missing_extra_is_named_with_its_cure(verb: list[str], package: str, extra: str) -> None:
    code = (
        "import sys, importlib.abc\n"
        "class Absent(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        f"        if name.partition('.')[0] == '{package}':\n"
        f"            raise ModuleNotFoundError('No module named ' + repr(name), name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        f"from quantformer_cli.main import main\nsys.exit(main({verb!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S, env=clean_environment(), check=False
    )
    assert done.returncode == 4
    line = error_line(done)
    assert repr(package) in line
    assert f"pip install 'quantformer[{extra}]'" in line


def test_status_of_nobody_is_status_4() -> None:
    with free_ports(1) as (port,):
        done = command("status", "--http-port", str(port))
    assert done.returncode == 4
    assert "nothing answers" in error_line(done)


def test_json_log_is_json_a_line(tiny_bundle_path: Path) -> None:
    with free_ports(4) as ports:
        flags = zip(["--http-port", "--zmq-port", "--pub-port", "--tcp-port"], map(str, ports), strict=True)
        service = subprocess.Popen(
            [sys.executable, "-m", "quantformer_cli.main", "serve", "--bundle", str(tiny_bundle_path), "--log", "json",
             *(part for flag in flags for part in flag)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=clean_environment(),
        )  # fmt: skip
    try:
        assert service.stdout is not None
        assert service.stdout.readline().startswith("ready: ")
    finally:
        service.send_signal(signal.SIGTERM)
        _, log = service.communicate(timeout=PATIENCE_S)
    assert service.returncode == 143
    records = [json.loads(line) for line in log.splitlines()]
    assert {"engine is ready", "gateway is ready"} <= {record["message"] for record in records}
    assert all(set(record) >= {"time", "level", "process", "logger", "message"} for record in records)


def test_a_reader_that_leaves_is_no_traceback() -> None:
    reader = subprocess.Popen(
        f"{sys.executable} -m quantformer_cli.main --help | {sys.executable} -c 'import sys; sys.stdin.close()'",
        shell=True, stderr=subprocess.PIPE, text=True, env=clean_environment(),
    )  # fmt: skip
    _, errors = reader.communicate(timeout=PATIENCE_S)
    assert "Traceback" not in errors


def test_output_has_no_colour_codes_even_on_a_terminal_where_no_color_is_set() -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as screen:
        shown = subprocess.Popen(
            [sys.executable, "-m", "quantformer_cli.main", "config", "show"],
            stdout=theirs, stderr=theirs, env=clean_environment(NO_COLOR="1", TERM="xterm"),
        )  # fmt: skip
        os.close(theirs)
        seen = bytearray()

        def read() -> bool:
            try:
                seen.extend(part := screen.read(65536))
            except OSError:  # the terminal's other side is closed
                return True
            return part == b""

        until(read)
        assert shown.wait(PATIENCE_S) == 0
    assert b"http_port" in seen
    assert b"\x1b" not in seen


def test_importing_a_verb_configures_no_logging() -> None:
    code = "import logging, quantformer_cli.main, quantformer_cli.serve, quantformer_service.api; print(logging.root.handlers)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S, env=clean_environment(), check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("number", "status", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")])
def test_a_signal_ends_any_verb_with_its_status(number: signal.Signals, status: int, word: str) -> None:
    """A status that is asked of a server which accepts and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        asking = subprocess.Popen(
            [sys.executable, "-m", "quantformer_cli.main", "status", "--http-port", str(silent.getsockname()[1])],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=clean_environment(),
        )  # fmt: skip
        silent.settimeout(PATIENCE_S)
        with silent.accept()[0]:
            asking.send_signal(number)
            out, errors = asking.communicate(timeout=PATIENCE_S)
    assert asking.returncode == status
    assert (out, errors) == ("", f"quantformer: error: {word}\n")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_in_a_finalizer_is_not_forgotten(number: signal.Signals, status: int) -> None:
    """Python prints and forgets what is raised in `__del__`; the verb must end all the same."""
    code = f"""if True:
        import signal, sys, time
        from quantformer_cli import main, status
        class Fleeting:
            def __del__(self):
                signal.raise_signal({int(number)})
                time.sleep(0)
        def run(args):
            Fleeting()
            time.sleep({PATIENCE_S})
            return 0
        status.run = run
        sys.argv = ["quantformer", "status"]
        main.entry()
    """
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S, env=clean_environment(), check=False
    )
    assert done.returncode == status, done.stderr


def test_a_signal_while_the_service_starts_ends_it(tiny_bundle_path: Path, tmp_path: Path) -> None:
    # On a loaded machine imports alone, which no signal interrupts, take longer than the default grace.
    with RunningService(tiny_bundle_path, folder=tmp_path, wait=False, shutdown_s=60) as service:
        service.child("engine")
        assert service.end(signal.SIGTERM) == 143
        assert "Traceback" not in service.log.read_text()
        assert "killed" not in service.log.read_text()
