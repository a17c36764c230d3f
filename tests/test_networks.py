"""Tests of the competitor networks: shapes, gradients, who sees whom, repeats, and files that are refused."""

from __future__ import annotations

import importlib
import json
import logging
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from brainlm_files import published
from random_rows import IDS, NEURONS, WIDTH, network_config, random_rows
from torch import nn

from quantformer.errors import DataError, MissingExtraError, UsageError
from quantformer_training.examples import Examples
from quantformer_training.networks import NETWORKS, CompetitorNetwork, NetworkConfig, NetworkSpec, finetuned_brainlm
from quantformer_training.networks.brainlm import Block, BrainLMSeries, EncoderSizes, MaskedAutoencoder
from quantformer_training.networks.brainlm_checkpoint import CONFIG, WEIGHTS, load_brainlm
from quantformer_training.networks.crossformer import SegmentMerging

torch.set_num_threads(1)

ALL = sorted(NETWORKS)
MULTIVARIATE = [name for name in ALL if NETWORKS[name].multivariate]
UNIVARIATE = [name for name in ALL if not NETWORKS[name].multivariate]
LIBRARY = ["autoformer", "informer", "itransformer", "patchtst", "tsmixer"]

#: Parameters that no gradient can reach, by network, and why.
NO_GRADIENT = {
    # A constant added to every key moves all scores of a query alike, and a softmax does not see it. What is constant over
    # rows does not pass the library's batch norms.
    "informer": r"key_projection\.bias$|attn_layers\.0\.norm2\.bias$|downConv\.bias$",
    "itransformer": r"key_projection\.bias$",
    # Both again; and the library keeps its attention's scale as a parameter that is not trained.
    "patchtst": r"(W_K|W_V|to_out\.0|ff\.3)\.bias$|sdp_attn\.scale$",
    # A constant in keys or queries moves the correlation at every delay alike. What is constant over frames is trend, which the
    # encoder's decomposition takes away, and the library's norm subtracts its mean over frames, and its bias with it.
    "autoformer": (
        r"encoder\.attn_layers\.\d\.attention\.\w+_projection\.bias$|"
        r"self_attention\.(query|key)_projection\.bias$|cross_attention\.query_projection\.bias$|layernorm\.bias$"
    ),
    # Where more frames are asked for than were given, keys are filled up with zeros, and their bias counts.
    "autoformer activation": r"cross_attention\.key_projection\.bias$",
    # In the beginning an LSTM has forgotten a patch 96 frames later: 0.5 to the power of 96 is left.
    "lstm": r"^prefix\.",
    # Keys again. To tell activation the decoder is trained in pre-training alone.
    "brainlm": r"\.key\.bias$",
    "brainlm activation": r"^series\.(mask_token|embed|blocks|norm|reconstruct)",
}


def network(name: str, outputs: int = 1, *, seed: int = 0, **sizes: Any) -> CompetitorNetwork:
    torch.manual_seed(seed)
    made = NETWORKS[name].make(network_config(outputs, **sizes))
    assert isinstance(made, CompetitorNetwork)
    return made


def loosened(made: CompetitorNetwork) -> CompetitorNetwork:
    """The network with vectors of neurons and stimuli that differ, as after training."""
    torch.manual_seed(7)
    with torch.no_grad():
        for vectors in made.context.tokens.parameters():
            vectors.normal_()
    return made


def doubled(rows: Examples) -> Examples:
    """The rows in float64."""
    return Examples(
        **{name: value.double() if value.dtype == torch.float32 else value for name, value in vars(rows).items()}
    )


@pytest.mark.parametrize("outputs", [1, 64])
@pytest.mark.parametrize("name", ALL)
def test_every_network_answers_every_row_and_learns_with_every_parameter(name: str, outputs: int) -> None:
    # In float64 a small gradient and the rounding of none are far apart.
    made, rows = loosened(network(name, outputs)).double(), doubled(random_rows(8))
    answer = made(rows)
    assert answer.shape == ((len(rows),) if outputs == 1 else (len(rows), 64))
    (answer * torch.randn(answer.shape)).sum().backward()
    excepted = [NO_GRADIENT.get(name), NO_GRADIENT.get(f"{name} activation") if outputs == 1 else None]
    pattern = "|".join(one for one in excepted if one)
    for parameter, value in made.named_parameters():
        reached = 0.0 if value.grad is None else float(value.grad.abs().max())
        assert reached < 1e-12 if pattern and re.search(pattern, parameter) else reached > 1e-10, (parameter, reached)


@pytest.mark.parametrize("name", NO_GRADIENT)
def test_exceptions_name_parameters_that_exist(name: str) -> None:
    names = [key for key, _ in network(name.split()[0]).named_parameters()]
    for pattern in NO_GRADIENT[name].split("$|"):
        assert any(re.search(pattern, key) for key in names), pattern


@pytest.mark.parametrize("outputs", [1, 64])
@pytest.mark.parametrize("name", ALL)
def test_neurons_are_mixed_by_multivariate_networks_and_by_no_other(name: str, outputs: int) -> None:
    made, rows = loosened(network(name, outputs)).eval(), random_rows(3)
    changed = rows.baseline.clone()
    changed[NEURONS] += 1.0
    with torch.no_grad():
        before, after = made(rows), made(replace(rows, baseline=changed))
    moved = (after - before).reshape(3, NEURONS, -1).abs().amax(2) > 1e-6
    assert moved[1, 0]
    assert not moved[0].any()
    assert not moved[2].any()
    assert bool(moved[1, 1:].all()) if NETWORKS[name].multivariate else not moved[1, 1:].any()


@pytest.mark.parametrize("name", MULTIVARIATE)
def test_what_an_invalid_row_holds_reaches_no_other_row(name: str) -> None:
    made, rows = loosened(network(name, 64)), random_rows(4)
    valid = torch.ones(len(rows), dtype=torch.bool)
    valid[1] = valid[7] = False
    # A trial without one valid neuron is no ground for numbers that are none.
    valid[2 * NEURONS : 3 * NEURONS] = False
    broken = replace(
        rows,
        baseline=torch.where(valid[:, None], rows.baseline, torch.nan),
        tuning=torch.where(valid[:, None], rows.tuning, 50.0),
    )
    for mode in (made.train(), made.eval()):
        with torch.no_grad():
            answer, again = mode(rows, valid)[valid], mode(broken, valid)[valid]
        assert torch.equal(answer, again)
        assert bool(answer.isfinite().all())
    with torch.no_grad():
        assert not torch.equal(made(rows)[valid], answer)


@pytest.mark.parametrize("name", ["crossformer", "itransformer"])
def test_an_invalid_neuron_is_as_if_it_were_not_there(name: str) -> None:
    # To networks that attend, not only to be told zeros but not to be asked.
    made, rows = loosened(network(name)).eval(), random_rows(1)
    valid = torch.tensor([True, True, True, False, False])
    series = made.series(torch.randn(1, NEURONS, 112), valid[None])
    with torch.no_grad():
        moved = torch.randn(1, NEURONS, 112)
        one = made.series(moved, valid[None])
        moved[0, 3:] += 5.0
        assert torch.equal(one[0, :3], made.series(moved, valid[None])[0, :3])
    assert series.shape == (1, NEURONS, 1)
    assert made(rows, valid).shape == (NEURONS,)


@pytest.mark.parametrize("name", ALL)
def test_what_happened_is_no_input(name: str) -> None:
    rows = random_rows(3)
    other = replace(
        rows,
        response=rows.response + 1.0,
        active=~rows.active,
        trace=torch.cat([rows.trace[:, :96], rows.trace[:, 96:] - 1.0], dim=1),
    )
    for outputs in (1, 64):
        made = network(name, outputs).eval()
        with torch.no_grad():
            assert torch.equal(made(rows), made(other))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("told", ["neuron", "stimulus", "features", "tuning", "level"])
def test_every_network_is_told_the_same(name: str, told: str) -> None:
    made, rows = loosened(network(name)).eval(), random_rows(2)
    value = getattr(rows, told)
    other = replace(rows, **{told: torch.full_like(value, 0 if told in ("neuron", "stimulus") else 2)})
    with torch.no_grad():
        assert not torch.equal(made(rows), made(other))
        # By the prefix patch, too: an offset of the output alone could not depend on what the baseline holds. An LSTM has to
        # learn to remember it.
        made.offset.weight.zero_()
        assert torch.equal(made(rows), made(other)) == (name == "lstm")


@pytest.mark.parametrize("name", ALL)
def test_repeats_to_the_bit_whatever_else_was_drawn(name: str) -> None:
    rows = random_rows(3)
    first, second = network(name, 64).eval(), network(name, 64).eval()
    state = torch.get_rng_state()
    with torch.no_grad():
        answer = first(rows)
        assert torch.equal(torch.get_rng_state(), state)
        torch.rand(3)
        assert torch.equal(answer, second(rows))
        # An answer does not depend on who else is asked about.
        alone = rows.select(torch.arange(NEURONS, 2 * NEURONS))
        torch.testing.assert_close(first(alone), answer[NEURONS : 2 * NEURONS], atol=1e-5, rtol=1e-5)
        if not NETWORKS[name].multivariate:
            one = rows.select(torch.tensor([1]))
            torch.testing.assert_close(first(one), answer[1:2], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("outputs", [1, 64])
@pytest.mark.parametrize("name", ALL)
def test_every_network_can_learn_a_few_rows_by_heart(name: str, outputs: int) -> None:
    made, rows = network(name, outputs, d=32, layers=1), random_rows(7)
    target = rows.active.float() if outputs == 1 else rows.trace[:, 96:]
    loss = nn.BCEWithLogitsLoss() if outputs == 1 else nn.MSELoss()
    optimizer = torch.optim.Adam(made.parameters(), lr=5e-3)
    errors = []
    for _ in range(80):
        error = loss(made(rows), target)
        errors.append(error.item())
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
    assert errors[-1] < (0.1 if outputs == 1 else 0.4) * errors[0]


def test_whole_trials_are_asked_for() -> None:
    with pytest.raises(DataError, match="7 rows are no whole trials of 5 neurons"):
        network("crossformer")(random_rows(2).select(torch.arange(7)))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"outputs": 2}, "expected 1"),
        ({"heads": 5}, "multiple of heads"),
        ({"d": 0}, "d = 0"),
        ({"neurons": 0}, "neurons = 0"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(wrong: dict[str, int], said: str) -> None:
    sizes = {"neurons": NEURONS, "feature_width": WIDTH, "stimulus_ids": IDS, "outputs": 1, **wrong}
    with pytest.raises(UsageError, match=said):
        NetworkConfig(**sizes)


@pytest.mark.parametrize("name", LIBRARY)
def test_a_missing_library_is_named_with_its_cure(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [key for key in sys.modules if key.partition(".")[0] == "neuralforecast"]:
        monkeypatch.delitem(sys.modules, module)
    # What Python itself does where a module is known not to exist.
    monkeypatch.setitem(sys.modules, "neuralforecast", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'quantformer\[compare\]'") as raised:
        network(name)
    assert NETWORKS[name].title in str(raised.value)
    assert raised.value.exit_code == 4


@pytest.fixture
def quiet() -> Iterator[None]:
    """The library's whole models seed every generator and say so."""
    state, level = torch.get_rng_state(), logging.getLogger("lightning_fabric").level
    logging.getLogger("lightning_fabric").setLevel(logging.ERROR)
    yield
    torch.set_rng_state(state)
    logging.getLogger("lightning_fabric").setLevel(level)


@pytest.mark.parametrize("name", ["autoformer", "informer"])
@pytest.mark.usefixtures("quiet")
def test_networks_put_together_of_layers_are_the_library_s(name: str) -> None:
    models = importlib.import_module("neuralforecast.models")
    whole = getattr(models, NETWORKS[name].title)(
        h=64, input_size=112, hidden_size=16, n_head=2, conv_hidden_size=16, encoder_layers=2, decoder_layers=1, dropout=0.0,
        factor=1 if name == "autoformer" else 3,
    )  # fmt: skip
    ours = network(name, 64).series
    whole.load_state_dict(ours.state_dict(), strict=False)
    assert set(ours.state_dict()) <= set(whole.state_dict())
    series = torch.randn(3, 112)
    for mode in (True, False):
        answers = []
        for made, asked in ((ours, series), (whole, {"insample_y": series[..., None], "futr_exog": None})):
            torch.manual_seed(0)
            with torch.no_grad():
                answers.append(made.train(mode)(asked).reshape(3, 64))
        assert torch.equal(*answers)


def test_segments_are_merged_in_pairs_and_the_last_repeated() -> None:
    merging = SegmentMerging(4)
    tokens = torch.randn(2, 3, 5, 4)
    merged = merging(tokens)
    assert merged.shape == (2, 3, 3, 4)
    last = merging(torch.stack([tokens[:, :, 4], tokens[:, :, 4]], dim=2))
    torch.testing.assert_close(merged[:, :, 2:], last)


class TestMaskedAutoencoder:
    def test_hides_a_fifth_and_never_the_prefix(self) -> None:
        made = network("brainlm", 64).eval()
        assert isinstance(made.series, BrainLMSeries)
        series = torch.randn(4, 16 + 160)
        noise = torch.linspace(0.0, 0.9, 10).repeat(4, 1)
        with torch.no_grad():
            loss = made.series.masked_loss(series, noise)
            # The two patches with the largest noise are told, never seen: what they hold enters by the error alone.
            flat = series.clone()
            flat[:, 16 + 128 :] = 0.0
            kept = torch.arange(9).repeat(4, 1)
            patches = series.reshape(4, 11, 16)
            told = made.series.decode(made.series.encoder(patches[:, :9], made.series.position[kept]), kept)
            torch.testing.assert_close(loss, (told[:, 9:] - patches[:, 9:]).square().mean())
            torch.testing.assert_close(made.series.masked_loss(flat, noise), told[:, 9:].square().mean())

    def test_a_forecast_is_what_the_decoder_tells_of_a_hidden_response(self) -> None:
        made = network("brainlm", 64).eval()
        assert isinstance(made.series, BrainLMSeries)
        series = torch.randn(2, 112)
        # Pre-training with noise that hides the last patches asks the same question, of two patches instead of four.
        kept = torch.arange(7).repeat(2, 1)
        with torch.no_grad():
            told = made.series.decode(made.series.encoder(series.reshape(2, 7, 16), made.series.position[kept]), kept)
            torch.testing.assert_close(made.series(series), told[:, 7:].flatten(1))

    def test_pre_training_reaches_all_but_the_head(self) -> None:
        made = network("brainlm")
        assert isinstance(made, MaskedAutoencoder)
        torch.autograd.backward(made.pretraining_loss(random_rows(4), torch.rand(20, 10)))
        without = [name for name, value in made.named_parameters() if value.grad is None]
        assert without == ["offset.weight", "offset.bias", "series.head.weight", "series.head.bias"]


SIZES = EncoderSizes(d=8, layers=2, heads=2, hidden=24, points=20, kernel=65)


class TestPublishedBrainLM:
    def test_every_weight_of_the_encoder_comes_from_the_file(self, tmp_path: Path) -> None:
        checkpoint = load_brainlm(published(tmp_path))
        assert checkpoint.sizes == SIZES
        spec = finetuned_brainlm(tmp_path)
        assert isinstance(spec, NetworkSpec)
        assert "CC BY-NC-ND 4.0" in spec.source
        made = spec.make(network_config(64))
        assert isinstance(made, CompetitorNetwork)
        assert isinstance(made.series, BrainLMSeries)
        state = made.series.encoder.state_dict()
        assert set(state) == set(checkpoint.weights)
        assert all(torch.equal(value, checkpoint.weights[name]) for name, value in state.items())
        # It is fine-tuned at once, not pre-trained again.
        assert not isinstance(made, MaskedAutoencoder)
        assert made(random_rows(2)).shape == (10, 64)
        assert spec.make(network_config(1))(random_rows(2)).shape == (10,)

    def test_a_block_is_the_published_layer(self) -> None:
        layers = pytest.importorskip("transformers.models.nystromformer.modeling_nystromformer")
        config = layers.NystromformerConfig(
            hidden_size=8, num_attention_heads=2, intermediate_size=24, conv_kernel_size=65, num_landmarks=64,
            segment_means_seq_len=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, layer_norm_eps=1e-12,
            hidden_act="gelu",
        )  # fmt: skip
        torch.manual_seed(0)
        theirs, ours = layers.NystromformerLayer(config).eval(), Block(SIZES, dropout=0.0).eval()
        parts = {
            "attention.self.query": ours.query, "attention.self.key": ours.key, "attention.self.value": ours.value,
            "attention.self.conv": ours.convolution, "attention.output.dense": ours.attention_out,
            "attention.output.LayerNorm": ours.attention_norm, "intermediate.dense": ours.expand,
            "output.dense": ours.contract, "output.LayerNorm": ours.norm,
        }  # fmt: skip
        for name, part in parts.items():
            part.load_state_dict(theirs.get_submodule(name).state_dict())
        tokens = torch.randn(3, 8, 8)
        with torch.no_grad():
            torch.testing.assert_close(theirs(tokens)[0], ours(tokens), atol=1e-4, rtol=1e-4)

    @pytest.mark.parametrize("absent", [CONFIG, WEIGHTS])
    def test_absent_files_are_refused_with_the_licence(self, tmp_path: Path, absent: str) -> None:
        (published(tmp_path) / absent).unlink()
        with pytest.raises(DataError, match=f"{absent} does not exist.*CC BY-NC-ND 4.0.*docs/competitors.md"):
            finetuned_brainlm(tmp_path)

    def test_other_tensors_are_refused(self, tmp_path: Path) -> None:
        name = "vit.encoder.layer.1.output.dense.weight"
        with pytest.raises(DataError, match=rf"no tensor '{name}'"):
            load_brainlm(published(tmp_path / "a", **{name: None}))
        with pytest.raises(DataError, match=rf"tensor '{name}' is \(8, 23\), by config.json it is \(8, 24\)"):
            load_brainlm(published(tmp_path / "b", **{name: torch.zeros(8, 23)}))
        with pytest.raises(DataError, match=rf"'{name}' holds numbers that are not finite"):
            load_brainlm(published(tmp_path / "c", **{name: torch.full((8, 24), torch.inf)}))

    @pytest.mark.parametrize("content", [b"", b"\x80\x04\x95 a pickle", b"\xff" * 64])
    def test_what_is_no_safetensors_file_is_refused(self, tmp_path: Path, content: bytes) -> None:
        (published(tmp_path) / WEIGHTS).write_bytes(content)
        with pytest.raises(DataError, match="not a safetensors file, or damaged"):
            load_brainlm(tmp_path)

    def test_a_cut_file_is_refused(self, tmp_path: Path) -> None:
        path = published(tmp_path) / WEIGHTS
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(DataError, match="not a safetensors file, or damaged"):
            load_brainlm(tmp_path)

    @pytest.mark.parametrize(
        ("sizes", "said"),
        [
            ("[]", "holds no object"),
            ("{", "is not JSON"),
            ("[" * 100_000, "is not JSON"),
            ({"hidden_size": 10**9}, "hidden_size is 1000000000; expected a whole number from 1 to 2048"),
            ({"hidden_size": None}, "hidden_size is None"),
            ({"num_hidden_layers": True}, "num_hidden_layers is True"),
            ({"num_attention_heads": 3}, "the heads share"),
            ({"conv_kernel_size": 64}, "an odd kernel"),
        ],
    )
    def test_sizes_that_are_none_are_refused(self, tmp_path: Path, sizes: str | dict[str, Any], said: str) -> None:
        path = published(tmp_path) / CONFIG
        path.write_text(sizes if isinstance(sizes, str) else json.dumps(json.loads(path.read_text()) | sizes))
        with pytest.raises(DataError, match=said):
            load_brainlm(tmp_path)

    def test_a_configuration_of_megabytes_is_refused_unread(self, tmp_path: Path) -> None:
        (published(tmp_path) / CONFIG).write_bytes(b" " * 2_000_000)
        with pytest.raises(DataError, match="2000000 bytes"):
            load_brainlm(tmp_path)
