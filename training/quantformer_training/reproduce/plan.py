"""Which runs the asked tables need: each is planned once, however many tables show it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from quantformer.labels import Definition
from quantformer_training.baselines import ACTIVATION_BASELINES, FORECAST_BASELINES
from quantformer_training.contest import BRAINLM_FINETUNED, MODELS
from quantformer_training.effort import Effort

#: Ablations and the search over K and d are on this category, as in the paper, or on the first there is.
ABLATED_CATEGORY = "drifting_gratings"
POOLED = "pooled"

#: Groups of runs, the ``table`` of their keys: every model as it is, generalisation, the search over K and d, mice pooled,
#: other meanings of "active".
MODELS_GROUP, LEFT_OUT_GROUP, SEARCH_GROUP, POOLED_GROUP, LABELS_GROUP = (
    "models",
    "left_out",
    "search",
    "pooled",
    "labels",
)
SUBJECTS, STIMULI = "subjects", "stimuli"
#: What "active" can mean beside the paper's words (`quantformer.labels`), and the models that are trained anew for it.
OTHER_LABELS: tuple[Definition, ...] = ("absolute", "evoked")
LABEL_MODELS = ("quantformer", "neuron_stimulus_rate", "base_rate", "logistic", "boosted_trees")

#: They attend over single frames, ten times the arithmetic of the others.
COSTLY = frozenset({"autoformer", "informer"})
#: Models whose forecasts stand beside ours in the figures, as far as they were run.
DRAWN_BESIDE = ("crossformer", "informer", "autoformer", "lstm", "brainlm", BRAINLM_FINETUNED, "patchtst", "ridge")
QUANTFORMER, PAPERS_OWN = "quantformer", "quantformer_paper"
CLASSICAL = frozenset({*ACTIVATION_BASELINES, *FORECAST_BASELINES})


@dataclass(frozen=True, kw_only=True)
class Extent:
    """How much of the paper's grid is run; None is all of it.

    ``codes`` (K) and ``widths`` (d) are searched on ``search_mice`` mice, each with the other at its default. With a mouse
    left out the others' model is tested on ``subject_categories`` of its categories; with a category left out, on
    ``stimulus_mice`` mice. `COSTLY` networks and other labels are run on every category or on the ablations' alone. A job
    trains ``networks_a_job`` networks on one reading of the data.
    """

    codes: tuple[int, ...]
    widths: tuple[int, ...]
    search_mice: int | None
    subject_categories: int | None
    stimulus_mice: int | None
    costly_everywhere: bool
    networks_a_job: int


#: By the effort's preset.
EXTENTS: Mapping[str, Extent] = MappingProxyType(
    {
        "small": Extent(
            codes=(4, 16, 32, 128),
            widths=(32, 64, 128),
            search_mice=1,
            subject_categories=1,
            stimulus_mice=1,
            costly_everywhere=False,
            networks_a_job=4,
        ),
        "recording": Extent(
            codes=(4, 16, 32, 128),
            widths=(32, 64, 128),
            search_mice=None,
            subject_categories=None,
            stimulus_mice=None,
            costly_everywhere=True,
            networks_a_job=4,
        ),
        "paper": Extent(
            codes=(4, 8, 16, 32, 64, 128, 256, 512),
            widths=(64, 128, 256, 512),
            search_mice=None,
            subject_categories=None,
            stimulus_mice=None,
            costly_everywhere=True,
            networks_a_job=1,
        ),
    }
)


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """An auto-encoder: of ``effort.model``, on every session but those of a mouse or the moments of a category."""

    effort: Effort
    variant: str = ""
    without_mouse: str = ""
    without_category: str = ""
    quantized: bool = True

    @property
    def title(self) -> str:
        """In words, and unique among the auto-encoders of a plan."""
        words = ["auto-encoder"] if self.quantized else ["auto-encoder without quantisation"]
        words += [self.variant] if self.variant else []
        words += [f"without {name}" for name in (self.without_mouse, self.without_category) if name]
        return ", ".join(words)


@dataclass(frozen=True, kw_only=True)
class PlannedContest:
    """Models trained and scored on one mouse (or `POOLED`) and category, from one auto-encoder.

    ``group`` and ``variant`` become part of the runs' keys; ``plain`` is the auto-encoder of the ablation; ``label`` says
    what active means.
    """

    group: str
    mouse: str
    category: str
    models: tuple[str, ...]
    pretraining: Pretraining
    plain: Pretraining | None = None
    variant: str = ""
    label: Definition = "signed"

    @property
    def effort(self) -> Effort:
        """What may be spent."""
        return self.pretraining.effort

    @property
    def needs(self) -> tuple[Pretraining, ...]:
        """The auto-encoders that it starts from."""
        return (self.pretraining,) if self.plain is None else (self.pretraining, self.plain)


def ablated_category(categories: Iterable[str]) -> str:
    """The category of ablations and search: drifting gratings, or the first of those there are."""
    found = list(categories)
    return ABLATED_CATEGORY if ABLATED_CATEGORY in found else found[0]


def models_of(table: str) -> tuple[str, ...]:
    """The models of a table of `MODELS_GROUP` runs."""
    if table == "table3":
        return (*filter(is_ablation, MODELS), PAPERS_OWN, QUANTFORMER)
    if table in ("table4", "tableA2", "tableA3"):
        return QUANTFORMER, PAPERS_OWN
    task = {"table1": "activation", "table2": "forecast", "tableA4": "forecast"}.get(table)
    return tuple(
        name
        for name, card in MODELS.items()
        if not is_ablation(name) and (task is None or card.tasks in ("both", task))
    )


def is_ablation(model: str) -> bool:
    """Whether the model is a step of the paper's ablation; only these may need the auto-encoder without quantisation."""
    return model.startswith("ablation_")


def plan(
    tables: Sequence[str], *, shown: Mapping[str, Sequence[str]], effort: Effort, extent: Extent, brainlm: bool = False
) -> tuple[PlannedContest, ...]:
    """The contests of ``tables``; ``shown`` are the categories that each mouse was shown, ``brainlm`` says whether its
    published weights are there to be fine-tuned.

    `MODELS_GROUP` comes first, so that our table is there before the others.
    """
    standard, plain = Pretraining(effort=effort), Pretraining(effort=effort, quantized=False)
    wanted: dict[tuple[str, str], set[str]] = {}

    def want(mouse: str, category: str, models: Iterable[str]) -> None:
        wanted.setdefault((mouse, category), set()).update(models)

    places = [(mouse, category) for mouse, categories in shown.items() for category in categories]
    every = list(dict.fromkeys(category for _, category in places))
    others: list[PlannedContest] = []
    for table in tables:
        if table in ("ours", "table1", "table2", "tableA4"):
            for mouse, category in places:
                costly = _whole(category, shown[mouse], extent)
                spared = {*(() if costly else COSTLY), *(() if brainlm else (BRAINLM_FINETUNED,))}
                want(mouse, category, [name for name in models_of(table) if name not in spared])
        elif table == "table3":
            for mouse, categories in shown.items():
                if categories:
                    want(mouse, ablated_category(categories), models_of(table))
        elif table == "table4":
            left_out = _left_out(shown, every, effort=effort, extent=extent)
            for one in left_out:
                want(one.mouse, one.category, one.models)
            others += left_out
        elif table in ("tableA2", "tableA3"):
            for mouse in _first([mouse for mouse, categories in shown.items() if categories], extent.search_mice):
                category = ablated_category(shown[mouse])
                want(mouse, category, models_of(table))
                others += _search(mouse, category, effort=effort, extent=extent)
        if table == "ours":
            others += [
                PlannedContest(
                    group=LABELS_GROUP, mouse=mouse, category=category, models=LABEL_MODELS, pretraining=standard,
                    variant=label, label=label,
                )
                for mouse, category in places
                if _whole(category, shown[mouse], extent)
                for label in OTHER_LABELS
            ]  # fmt: skip
        if table == "ours" and len(shown) > 1:
            others += [
                PlannedContest(
                    group=POOLED_GROUP, mouse=POOLED, category=category, models=(QUANTFORMER,), pretraining=standard
                )
                for category in every
            ]
    main = [
        PlannedContest(
            group=MODELS_GROUP,
            mouse=mouse,
            category=category,
            models=tuple(name for name in MODELS if name in models),
            pretraining=standard,
            plain=plain if any(map(is_ablation, models)) else None,
        )
        for (mouse, category), models in wanted.items()
    ]
    return tuple(dict.fromkeys([*main, *others]))


def _whole(category: str, categories: Sequence[str], extent: Extent) -> bool:
    """Whether a category gets what is dear."""
    return extent.costly_everywhere or category == ablated_category(categories)


def pretrainings(contests: Iterable[PlannedContest]) -> tuple[Pretraining, ...]:
    """The auto-encoders that contests start from, each once."""
    return tuple(dict.fromkeys(one for contest in contests for one in contest.needs))


def in_jobs(models: Sequence[str], *, extent: Extent) -> list[tuple[str, ...]]:
    """Models that one job trains: classical ones together, networks a few at a time, ablations apart for their auto-encoder."""
    classical = tuple(name for name in models if name in CLASSICAL)
    ablations = [name for name in models if is_ablation(name)]
    networks = [name for name in models if name not in (*classical, *ablations)]
    size = extent.networks_a_job
    found = [tuple(some[k : k + size]) for some in (networks, ablations) for k in range(0, len(some), size)]
    return [*found, classical] if classical else found


def _left_out(
    shown: Mapping[str, Sequence[str]], every: Sequence[str], *, effort: Effort, extent: Extent
) -> list[PlannedContest]:
    """Each mouse, then each category, left out of pre-training and tested on; what is left must be something."""
    found = []
    for mouse, categories in shown.items() if len(shown) > 1 else ():
        ordered = sorted(categories, key=lambda name: name != ABLATED_CATEGORY)
        for category in _first(ordered, extent.subject_categories):
            found.append((mouse, category, SUBJECTS, Pretraining(effort=effort, without_mouse=mouse)))
    for category in every if len(every) > 1 else ():
        for mouse in _first(
            [mouse for mouse, categories in shown.items() if category in categories], extent.stimulus_mice
        ):
            found.append((mouse, category, STIMULI, Pretraining(effort=effort, without_category=category)))
    return [
        PlannedContest(
            group=LEFT_OUT_GROUP, mouse=mouse, category=category, models=models_of("table4"), variant=variant,
            pretraining=pretraining,
        )
        for mouse, category, variant, pretraining in found
    ]  # fmt: skip


def search_variants(effort: Effort, extent: Extent) -> dict[str, Effort]:
    """The models of the search by variant, ``k=16`` or ``d=64``; the default one, which is run anyway, among them."""
    codes = sorted({*extent.codes, effort.model.codes})
    widths = sorted({*extent.widths, effort.model.d})
    return {f"k={k}": replace(effort, model=replace(effort.model, codes=k)) for k in codes} | {
        f"d={d}": replace(effort, model=replace(effort.model, d=d)) for d in widths
    }


def _search(mouse: str, category: str, *, effort: Effort, extent: Extent) -> list[PlannedContest]:
    return [
        PlannedContest(
            group=SEARCH_GROUP, mouse=mouse, category=category, models=models_of("tableA2"), variant=variant,
            pretraining=Pretraining(effort=changed, variant=variant),
        )
        for variant, changed in search_variants(effort, extent).items()
        if changed != effort
    ]  # fmt: skip


def _first(found: Sequence[str], most: int | None) -> Sequence[str]:
    return found if most is None else found[:most]
