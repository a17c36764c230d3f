"""The OpenAPI page: made from the table of operations, complete, and true to what its examples say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from quantformer.bundle import load_bundle
from quantformer_client import Rest, wire
from quantformer_client.errors import ErrorCode
from quantformer_service.api import Api, build
from quantformer_service.engine_link import EngineLink
from quantformer_service.http_errors import STATUS
from quantformer_service.operations import OPERATIONS
from quantformer_service.predict_queue import PredictQueue
from quantformer_service.settings import Settings

DOCS = Path(__file__).resolve().parents[1] / "docs"


@pytest.fixture(scope="module")
def page(tiny_bundle_path: Path) -> dict[str, Any]:
    settings = Settings(bundle=str(tiny_bundle_path))
    link = EngineLink(settings)
    api = Api(settings=settings, bundle=load_bundle(tiny_bundle_path), link=link, predictions=PredictQueue(settings))
    found: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(build(api, settings=settings).openapi()))
    return found


def operations(page: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [(path, method, one) for path, methods in page["paths"].items() for method, one in methods.items()]


def test_every_operation_of_the_table_is_there_and_no_other(page: dict[str, Any]) -> None:
    found = {(path, method.upper()) for path, method, _ in operations(page)}
    assert found == {(one.path, one.method) for one in OPERATIONS}


def test_every_operation_has_summary_example_and_errors(page: dict[str, Any]) -> None:
    for path, method, one in operations(page):
        name = f"{method} {path}"
        assert one["summary"], name
        if method == "post" and not path.endswith("/disarm"):
            assert one["requestBody"]["content"]["application/json"]["example"], name
        results = [entry for status, entry in one["responses"].items() if status.startswith("2")]
        for entry in results:
            media = entry["content"]["application/json"]
            assert entry["description"], name
            assert media["schema"]["$ref"], name
            assert "example" in media or media["examples"], name
        errors = [entry for status, entry in one["responses"].items() if status[0] in "45"]
        assert errors or path == "/v1/health", name
        for entry in errors:
            examples = entry["content"]["application/json"].get("examples") or {"result": None}
            assert all(examples), name


def test_every_reference_leads_somewhere(page: dict[str, Any]) -> None:
    text = msgspec.json.encode(page).decode()
    wanted = set(re.findall(r'"#/components/schemas/([^"]+)"', text))
    assert wanted
    assert wanted <= set(page["components"]["schemas"])


def test_the_examples_of_requests_are_what_the_service_reads() -> None:
    for one in OPERATIONS:
        if one.example is not None:
            assert msgspec.convert(msgspec.to_builtins(one.example), type(one.example)) == one.example


def test_every_code_of_the_wire_has_a_status() -> None:
    assert {code for code in ErrorCode if code not in STATUS} == set()


def test_the_rest_page_names_every_operation_and_code() -> None:
    text = (DOCS / "rest.md").read_text(encoding="utf-8")
    for one in OPERATIONS:
        assert f"`{one.method} {one.path}`" in text, f"docs/rest.md lacks {one.method} {one.path}"
    for code in STATUS:
        assert f"`{code}`" in text, f"docs/rest.md lacks the code {code}"


def test_the_python_client_has_every_operation() -> None:
    class Recorded(Rest):
        def _send(self, method: str, path: str, **_: object) -> Any:
            return method, re.sub(r"/\d+", lambda found: "/{session}" if found.start() == 12 else "/{question}", path)

    stimulus = wire.Stimulus(stimulus_id="a")
    with Recorded() as rest:
        calls: list[Any] = [
            rest.health(), rest.ready(), rest.version(), rest.bundle(), rest.status(), rest.describe(1),
            rest.open(wire.Open(subject="m", rois=["a"], rate_hz=30.0)), rest.close_session(1), rest.frames(1, []),
            rest.onset(1, wire.Onset(stimuli=[stimulus])), rest.best(1, [stimulus]),
            rest.standing(1, wire.Standing(stimuli=[stimulus])),
            rest.clear_standing(1, 2), rest.stimulation(1, wire.Stimulation()), rest.acquisition(1, "start"),
            rest.prediction(1), rest.rules(1), rest.set_rule(1, wire.Rule(rule="r", rois=["a"], threshold=0.5)),
            rest.remove_rule(1, "r"), rest.trigger(1), rest.arm(1), rest.heartbeat(1, lease=3), rest.disarm(1), rest.stop(1),
            rest.stop(), rest.predict(neurons=["a"], stimuli=[stimulus], fluorescence=[[1.0]]),
        ]  # fmt: skip
    assert set(calls) == {(one.method, one.path) for one in OPERATIONS}
