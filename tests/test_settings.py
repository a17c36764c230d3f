"""The settings' precedence, refusals and documentation."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantformer.errors import UsageError
from quantformer_cli.config import markdown
from quantformer_service.settings import Settings, resolve, table

DOCS = Path(__file__).resolve().parents[1] / "docs"


def test_precedence_is_flag_environment_file_default(tmp_path: Path) -> None:
    (tmp_path / "quantformer.toml").write_text('http_port = 1001\nzmq_port = 1002\npub_port = 1003\nlog = "json"\n')
    found = resolve(
        flags={"http_port": "3001"},
        environment={"QUANTFORMER_HTTP_PORT": "2001", "QUANTFORMER_ZMQ_PORT": "2002", "OTHER": "x"},
        folder=tmp_path,
    )
    settings = found.settings
    assert (settings.http_port, settings.zmq_port, settings.pub_port, settings.tcp_port) == (3001, 2002, 1003, 7413)
    assert found.sources["http_port"] == "flag --http-port"
    assert found.sources["zmq_port"] == "environment QUANTFORMER_ZMQ_PORT"
    assert found.sources["pub_port"] == f"file {tmp_path / 'quantformer.toml'}"
    assert found.sources["tcp_port"] == "default"


def test_a_named_file_takes_the_place_of_the_folders_own(tmp_path: Path) -> None:
    (tmp_path / "quantformer.toml").write_text("http_port = 1001\n")
    other = tmp_path / "other.toml"
    other.write_text("zmq_port = 1002\n")
    settings = resolve(environment={}, config=other, folder=tmp_path).settings
    assert (settings.http_port, settings.zmq_port) == (7410, 1002)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("htp_port = 1\n", "nearest is http_port"),
        ("http_port = 70000\n", "from 1 to 65535"),
        ('http_port = "eight"\n', "whole number"),
        ("http_port = true\n", "whole number"),
        ("http_port = 1.5\n", "whole number"),
        ("shutdown_s = nan\n", "a number of s"),
        ("shutdown_s = [1]\n", "a number of s"),
        ('log = "xml"\n', "one of text, json"),
        ("http_port = \n", "not TOML"),
        ("[http]\nport = 1\n", "not a setting"),
    ],
)
def test_a_bad_file_is_refused_with_its_name_and_what_was_expected(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "quantformer.toml"
    file.write_text(text)
    with pytest.raises(UsageError, match=says) as caught:
        resolve(environment={}, folder=tmp_path)
    assert str(file) in str(caught.value)


def test_a_named_file_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        resolve(environment={}, config=tmp_path / "none.toml", folder=tmp_path)


def test_unknown_environment_names_the_nearest_variable() -> None:
    with pytest.raises(UsageError, match="nearest is QUANTFORMER_TCP_PORT"):
        resolve(environment={"QUANTFORMER_TCPPORT": "1"}, folder=None)


@given(text=st.one_of(st.integers(-70000, 70000).map(str), st.text(max_size=20)))
def test_any_text_for_a_port_is_read_or_refused(text: str) -> None:
    try:
        fits = 1 <= int(text) <= 65535
    except ValueError:
        fits = False
    if fits:
        assert resolve(environment={"QUANTFORMER_HTTP_PORT": text}, folder=None).settings.http_port == int(text)
    else:
        with pytest.raises(UsageError, match="QUANTFORMER_HTTP_PORT"):
            resolve(environment={"QUANTFORMER_HTTP_PORT": text}, folder=None)


def test_a_secret_is_not_repeated_in_an_error(tmp_path: Path) -> None:
    (tmp_path / "quantformer.toml").write_text("token = 123456\n")
    with pytest.raises(UsageError) as caught:
        resolve(environment={}, folder=tmp_path)
    assert "123456" not in str(caught.value)


@given(
    token=st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20),
    port=st.integers(1, 65535),
    wait=st.floats(0.1, 60.0),
)
def test_a_child_process_reads_back_the_settings_it_was_handed(token: str, port: int, wait: float) -> None:
    settings = Settings(token=token, http_port=port, shutdown_s=wait)
    assert Settings.from_environment(settings.environment()) == settings


def test_every_setting_has_help_and_a_default_that_it_would_accept() -> None:
    for row in table():
        assert row.help, f"{row.name} has no help"
        assert row.read(row.default, source=row.name) == row.default
        if row.name.endswith(("_s", "_bytes")):
            assert row.unit, f"{row.name} has no unit"


def test_the_settings_page_holds_the_table_as_it_is() -> None:
    page = (DOCS / "settings.md").read_text(encoding="utf-8")
    assert markdown(table()) in page, "run 'quantformer config show --markdown' and put its table into docs/settings.md"


def test_settings_need_nothing_but_the_standard_library() -> None:
    code = (
        "import sys; import quantformer_service.settings; "
        "print([name for name in ('numpy', 'torch', 'fastapi', 'zmq', 'msgspec', 'rich') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.strip() == "[]"
