"""The README says what is true: its tree, its code, its commands, its extras."""

import ast
import importlib
import importlib.util
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from running_service import RunningService, traces

from quantformer_cli.main import VERBS
from quantformer_client.wire import Answer

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
SNIPPETS = [text for language, text in BLOCKS if language == "python"]


@pytest.fixture(scope="module")
def readme_tree() -> ModuleType:
    spec = importlib.util.spec_from_file_location("readme_tree", ROOT / "deploy/readme_tree.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout: no list of tracked files")
def test_the_tree_names_the_tracked_files_and_no_other(readme_tree: ModuleType) -> None:
    tree = readme_tree.render(readme_tree.entries(readme_tree.tracked()))
    assert readme_tree.replace_tree(README, tree) == README, "stale: run 'python deploy/readme_tree.py' and commit README.md"


def test_a_tree_shows_folders_once_and_files_under_them(readme_tree: ModuleType) -> None:
    shown = {"a.py": "first", "room/b.py": "second", "room/deep/c.py": "third", "room/pages/": "fourth", "z/": "fifth"}
    lines = [line.strip().split("  ")[0] for line in readme_tree.render(shown).splitlines()]
    assert lines == ["a.py", "room/", "b.py", "deep/", "c.py", "pages/", "z/"]


def test_a_file_that_says_nothing_of_itself_is_an_error(readme_tree: ModuleType) -> None:
    with pytest.raises(readme_tree.UndescribedError, match=r"unknown\.bin has no line"):
        readme_tree.describe("unknown.bin")


def test_a_line_without_a_file_is_an_error(readme_tree: ModuleType) -> None:
    with pytest.raises(readme_tree.UndescribedError, match="LICENSE"):
        readme_tree.entries([name for name in readme_tree.LINES if name != "LICENSE"])


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_python_on_the_page_compiles_and_imports_what_exists(snippet: str) -> None:
    tree = ast.parse(snippet)
    compile(tree, "README.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module or "")
            assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


def test_the_session_on_the_page_works(tiny_bundle_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As it stands there, on a service whose port is not the default one."""
    (session,) = [snippet for snippet in SNIPPETS if "Microscope(" in snippet]
    names: dict[str, object] = {"frames": traces(200, rois=2)}
    with RunningService(tiny_bundle_path, folder=tmp_path / "service") as service:
        exec(session.replace("Microscope(", f"Microscope(port={service.zmq}, "), names)
    answer = names["answer"]
    assert isinstance(answer, Answer)
    assert answer.valid.all()
    assert answer.probability.shape == (1, 2)
    assert np.isfinite(answer.response).all()
    assert capsys.readouterr().out


def test_commands_on_the_page_exist() -> None:
    lines = [line for _, text in BLOCKS for line in text.splitlines()]
    shown = [shlex.split(line, comments=True) for line in lines if line.startswith("quantformer ")]
    assert [words[1] for words in shown if words[1] not in VERBS] == []
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (declared,) = re.findall(r"^\.PHONY: (.*)$", makefile, flags=re.MULTILINE)
    assert set(re.findall(r"\bmake (\w+)", README)) <= set(declared.split())


def test_every_extra_is_on_the_page() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(re.findall(r"'\.\[(\w+)\]'", README)) == set(project["optional-dependencies"])


def test_links_lead_to_files() -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", README) + re.findall(r'<img [^>]*src="(?!https?:)([^"]+)"', README)
    assert [target for target in targets if not (ROOT / target).exists()] == []


@pytest.mark.parametrize("verb", ["demo", "test", "check", "bench", "clean"])
def test_make_knows_its_verbs(verb: str) -> None:
    done = subprocess.run(["make", "--dry-run", verb], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_make_refuses_an_old_interpreter(tmp_path: Path) -> None:
    old = tmp_path / "python3.10"
    old.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -c "import sys; sys.version_info = (3, 10); $2"\n')
    old.chmod(0o755)
    (tmp_path / "constraints.txt").touch()
    (tmp_path / "pyproject.toml").touch()
    done = subprocess.run(
        ["make", "--file", ROOT / "Makefile", f"PYTHON={old}", ".venv/run.stamp"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "quantformer needs Python 3.11 or newer" in done.stderr
    assert not (tmp_path / ".venv").exists()
