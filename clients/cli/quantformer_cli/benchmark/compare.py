"""Two benches side by side: ratios figure by figure, whether they stem from one machine, and what the rounds' spread says."""

from __future__ import annotations

from dataclasses import dataclass

from quantformer_cli.benchmark.results import FIGURES, Document, Figure, Result

#: Quantiles that are compared, by their names in `Figure`.
QUANTILES = ("p50", "p99", "p999", "max")


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """One figure of one condition: ``before`` and ``after`` in us, and whether the rounds of one overlap those of the
    other (None where there are no rounds to tell it from).
    """

    label: str
    figure: str
    quantile: str
    before: float
    after: float
    overlaps: bool | None

    @property
    def ratio(self) -> float:
        """After over before."""
        return self.after / self.before if self.before else float("inf") if self.after else 1.0

    @property
    def verdict(self) -> str:
        """In words."""
        if self.overlaps is None:
            return ""
        if self.overlaps:
            return "within the rounds' spread"
        return "slower" if self.after > self.before else "faster"


def ratios(before: Document, after: Document) -> list[Ratio]:
    """Of every figure that both have."""
    earlier = {_key(one): one for one in before.results if not one.failed}
    found = []
    for now in after.results:
        then = earlier.get(_key(now))
        if then is None or now.failed:
            continue
        for name in FIGURES:
            if name not in then.figures or name not in now.figures:
                continue
            old, new = then.figures[name], now.figures[name]
            for quantile in QUANTILES:
                a, b = getattr(old, quantile), getattr(new, quantile)
                if a is not None and b is not None:
                    overlaps = _overlaps(old, new, quantile)
                    label = f"{now.condition.label}: {now.kind}"
                    found.append(
                        Ratio(label=label, figure=name, quantile=quantile, before=a, after=b, overlaps=overlaps)
                    )
    return found


def differences(before: Document, after: Document) -> list[str]:
    """What else than the software differs, in words; empty where the two can be compared."""
    pairs = [
        ("processor", before.machine.processor, after.machine.processor),
        ("usable cores", before.machine.usable_cores, after.machine.usable_cores),
        ("host", before.machine.host, after.machine.host),
        ("provider", before.service.provider, after.service.provider),
        ("precision", before.service.precision, after.service.precision),
        ("granted by the system", before.service.granted_words, after.service.granted_words),
        ("threads", before.service.threads, after.service.threads),
        ("GPU", before.gpu and before.gpu.name, after.gpu and after.gpu.name),
        ("frame rate", before.pace.rate_hz, after.pace.rate_hz),
        ("jitter", before.pace.jitter, after.pace.jitter),
        ("detail", before.pace.detail, after.pace.detail),
        ("bundle", before.service.bundle, after.service.bundle),
    ]
    return [f"{name}: {old} before, {new} after" for name, old, new in pairs if old != new]


def _key(result: Result) -> tuple[object, str]:
    return result.condition, result.kind


def _overlaps(old: Figure, new: Figure, quantile: str) -> bool | None:
    name = "max" if quantile == "max" else quantile
    if name == "p999":
        return None
    a = [value for one in old.rounds if (value := getattr(one, name)) is not None]
    b = [value for one in new.rounds if (value := getattr(one, name)) is not None]
    if len(a) < 2 or len(b) < 2:
        return None
    return bool(max(min(a), min(b)) <= min(max(a), max(b)))
