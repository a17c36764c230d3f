"""The README's picture comes out of a demo's report, and out of nothing else."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from quantformer_training.figures import ForecastPanel, forecast_panels
from quantformer_training.report import Picture, Report, Section, render

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("readme_picture", ROOT / "deploy/readme_picture.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def page(*pictures: Picture) -> str:
    sections = [Section(title=f"{number}", parts=[picture]) for number, picture in enumerate(pictures)]
    return render(Report(title="Demo", subtitle="s", banner="b", failed=False, tiles=[], sections=sections))


def test_the_picture_is_the_reports_figure_of_forecasts(script: ModuleType) -> None:
    frames = np.arange(64) / 64
    panel = ForecastPanel(
        title="n1 <dir>", before=np.zeros(96), happened=frames, forecast=frames, low=frames - 1, high=frames + 1,
        probability=0.5, active=True,
    )  # fmt: skip
    # The words of the demo's own report.
    alt = "1 panels of dF/F over time: baseline, forecast with interval, and the response that followed"
    assert alt.partition("time: ")[2] in (ROOT / "clients/cli/quantformer_cli/demo_report.py").read_text()
    forecasts = Picture(svg=forecast_panels([panel], rate_hz=30.0, level=0.8), alt=alt, caption="c")
    other = Picture(svg=b"<svg/>", alt="Observed fraction active against predicted probability", caption="c")
    assert script.picture_of(page(other, forecasts, other)) == forecasts.svg
    for wrong in (page(other), page(forecasts, forecasts), ""):
        with pytest.raises(ValueError, match="figures of forecasts, expected one"):
            script.picture_of(wrong)


def test_the_picture_in_the_repository_is_one_that_it_writes(script: ModuleType) -> None:
    assert Path(script.PICTURE) == ROOT / "docs/forecast.svg"
    text = script.PICTURE.read_text()
    for said in ("before the onset", "what then happened", "80 % interval", "forecast", "dF/F", "time from onset, s"):
        assert f">{said}<" in text
