"""All figures at once: files that are what they say, the same twice, with nothing of this machine or day in them."""

from __future__ import annotations

import io
import re
import struct
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import matplotlib.image
import pytest
import torch
from small_fit import fitted
from small_model import tiny_model

from quantformer.errors import DataError
from quantformer_training.explain.chosen import Competitor
from quantformer_training.explain.gallery import Explained, Gallery, draw_all

NAMES = [
    "forecasts_drifting_gratings", "forecasts_hostile_b_etc", "quantization", "code_map", "sequence_effect", "attention",
    "neuron_map",
]  # fmt: skip
HOSTILE = "../hostile <b> /etc"


@cache
def explained() -> dict[str, Explained]:
    """One category, cut in two, the second with a name that no file should have."""
    fit = fitted()
    train, test = (fit.source(fit.real[part]).at_lead(0) for part in ("train", "test"))
    half = Explained(model=fit.model, interval=fit.calibrated.interval, train=train, test=test)
    nothing = Competitor.scored(torch.zeros(len(test) // 2, 64).numpy(), test.response[: len(test) // 2].numpy())
    first, second = torch.arange(len(test) // 2), torch.arange(len(test) // 2, len(test))
    return {
        "drifting_gratings": replace(half, test=test.select(first), competitors={"nothing <&>": nothing}),
        HOSTILE: replace(half, test=test.select(second)),
    }


def draw(directory: Path, categories: dict[str, Explained] | None = None, *, seed: int = 0) -> Gallery:
    return draw_all(
        directory, pretrained=fitted().pretrained, categories=explained() if categories is None else categories,
        origin="simulated", source="small gratings", rate_hz=30.0, seed=seed,
    )  # fmt: skip


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Gallery:
    return draw(tmp_path_factory.mktemp("secret_place") / "figures")


def chunks(png: bytes) -> set[bytes]:
    kinds, at = set(), 8
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        kinds.add(png[at + 4 : at + 8])
        at += 12 + length
    return kinds


def test_every_figure_of_the_paper_is_there(gallery: Gallery) -> None:
    assert [figure.name for figure in gallery.figures] == NAMES
    assert [figure.paper for figure in gallery.figures][2:] == ["A-7", "A-9 a, b", "A-9 c", "A-8", "A-10"]
    assert gallery.left_out == {}
    found = {path.name for path in gallery.figures[0].svg.parent.iterdir()}
    assert found == {f"{name}.{kind}" for name in NAMES for kind in ("svg", "png")}


def test_files_are_pictures(gallery: Gallery) -> None:
    for figure in gallery.figures:
        root = ElementTree.fromstring(figure.svg.read_bytes())
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert len(list(root.iter())) > 50
        image = matplotlib.image.imread(io.BytesIO(figure.png.read_bytes()))
        assert min(image.shape[:2]) > 300
        assert image[..., :3].std() > 0.01


def test_files_hold_no_word_of_where_and_when(gallery: Gallery) -> None:
    today = datetime.now(UTC).strftime("%Y-%m-%d").encode()
    for figure in gallery.figures:
        svg, png = figure.svg.read_bytes(), figure.png.read_bytes()
        for word in (b"secret_place", b"/home", b"/tmp", b"/work", b"/usr", today, b"<dc:date", b"matplotlib.org"):
            assert word not in svg
        assert chunks(png) == {b"IHDR", b"pHYs", b"IDAT", b"IEND"}
        assert "secret_place" not in figure.caption


def test_the_same_data_and_seed_give_the_same_files(gallery: Gallery, tmp_path: Path) -> None:
    again = draw(tmp_path)
    for first, second in zip(gallery.figures, again.figures, strict=True):
        assert first.svg.read_bytes() == second.svg.read_bytes()
        assert first.png.read_bytes() == second.png.read_bytes()
        assert first.caption == second.caption


def test_captions_say_where_the_data_came_from(gallery: Gallery) -> None:
    for figure in gallery.figures:
        assert figure.caption.endswith("Data: simulated (small gratings); seed 0.")
        assert re.search(r"\d", figure.caption)
        assert figure.title
        assert all(isinstance(value, int | float) for value in figure.numbers.values())
    assert "48 test windows" in gallery.figures[3].caption
    assert "shortcut" in gallery.figures[5].caption


def test_a_figure_that_the_data_does_not_allow_is_left_out_with_its_reason(tmp_path: Path) -> None:
    one = explained()["drifting_gratings"]
    few = replace(one, train=one.train.select(torch.nonzero(one.train.neuron < 2)[:, 0]))
    none = replace(one, test=one.test.select(torch.arange(0)), competitors={})
    made = draw(tmp_path, {"few": replace(few, model=tiny_model(fitted().vocabulary)), "none": none})
    # The tiny model's random networks share no shape with the other category's model, and need not.
    assert [figure.name for figure in made.figures] == [
        "forecasts_few", "quantization", "code_map", "sequence_effect", "attention", "neuron_map_none",
    ]  # fmt: skip
    assert list(made.left_out) == ["forecasts_none", "neuron_map_few"]
    assert "no row" in made.left_out["forecasts_none"]
    assert "at least 4" in made.left_out["neuron_map_few"]
    assert not (tmp_path / "neuron_map_few.svg").exists()


def test_no_category_and_categories_that_share_a_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no stimulus category"):
        draw(tmp_path, {})
    one = explained()["drifting_gratings"]
    with pytest.raises(DataError, match="would share files"):
        draw(tmp_path, {"a b": one, "a_b": one})
