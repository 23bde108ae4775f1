"""Importance scores of bias terms (BEFT, arXiv 2509.15974): which term of which layer did tuning need?

A term at a layer has a bias b before and b' after all biases were tuned together. Its scores:

    projection  1 - cos(b, b') min(|b|, |b'|) / max(|b|, |b'|)     the paper's; 0: untouched, 1: orthogonal, 2: opposite
    magnitude   mean over features of |b' - b|
    Fisher      mean over features of the mean squared gradient at b, see `fisher`

A term's own score is the mean over its layers. The projection score of a zero bias is undefined: the direction of b is
(in a model without biases that is every term), and so it is None here. What a value vector does in such a model can be
told all the same: `|W_o repeat_kv(b_v)|` relative to the attention output, see `effect`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn

from ..core.sites import Site, get_module
from ..core.terms import TERMS

SCORES: dict[str, str] = {
    "projection": "projection",
    "magnitude": "magnitude",
    "fisher_paper": "Fisher (paper)",
    "fisher": "Fisher",
}
"""Names of the scores and what tables call them; `register_score` adds to them."""
LEGEND = (
    "Projection: 1 - cos(b, b') min(|b|, |b'|) / max(|b|, |b'|), the paper's score. Magnitude: mean |b' - b|. Fisher "
    "(paper): mean squared gradient of batches of 8, clipped; Fisher: of single examples, unclipped. Effect on "
    "attention: size of what the value vectors add, relative to the attention output."
)


@dataclass(frozen=True)
class SiteScores:
    """The scores of one term at one layer; None where a score is undefined or was not measured."""

    term: str
    layer: int
    module: str
    attention: str
    stack: str
    width: int
    projection: float | None
    magnitude: float
    fisher_paper: float | None = None
    fisher: float | None = None
    effect: float | None = None
    """Value terms: size of what tuning adds behind W_o, relative to the attention output (mean over tokens)."""
    others: Mapping[str, float | None] = field(default_factory=dict)
    """Scores from outside, by name."""

    def score(self, name: str) -> float | None:
        """A score by its name; None where it is undefined or was not measured."""
        return self.others.get(name) if name not in _FIELDS else getattr(self, name)

    def to_dict(self) -> dict[str, Any]:
        """All fields by name, those from outside among them."""
        record = asdict(self)
        return {**record, **record.pop("others")}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SiteScores:
        """The scores of a dict as `to_dict` gives."""
        others = {name: value for name, value in values.items() if name not in _FIELDS}
        return cls(**{name: value for name, value in values.items() if name in _FIELDS}, others=others)


_FIELDS = frozenset(each.name for each in fields(SiteScores)) - {"others"}


NOISE = 1e-8
"""Share of the largest Fisher score (a squared gradient) below which a gradient is rounding, in fp32 and bf16."""


@dataclass
class Importance:
    """The scores of a model on a task, and where they came from."""

    model: str
    task: str
    sites: list[SiteScores]
    notes: list[str] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def terms(self) -> list[str]:
        """The terms that were scored, in vocabulary order."""
        present = {site.term for site in self.sites}
        return [name for name in TERMS if name in present]

    def values(self, score: str) -> dict[str, float]:
        """Term to the mean of a score over the layers where it is defined; a term without any is left out."""
        found: dict[str, list[float]] = {name: [] for name in self.terms}
        for site in self.sites:
            value = site.score(score)
            if value is not None:
                found[site.term].append(value)
        return {name: sum(values) / len(values) for name, values in found.items() if values}

    def ranked(self, score: str) -> dict[str, float]:
        """`values` without the inert terms: what moved them is not the task, so that they have no rank."""
        inert = self.inert()
        return {name: value for name, value in self.values(score).items() if name not in inert}

    def ranking(self, score: str) -> list[str]:
        """Terms by descending score; those for which it is undefined, and inert ones, are left out."""
        values = self.ranked(score)
        return sorted(values, key=lambda name: -values[name])

    def inert(self) -> list[str]:
        """Terms whose gradients are nothing but rounding: by Fisher below `NOISE` of the largest term."""
        values = self.values("fisher")
        return [name for name, value in values.items() if value < NOISE * max(values.values())]

    def rows(self) -> list[tuple[str, str, int]]:
        """(stack, attention, layer) of every row of a heatmap, in layer order."""
        places = dict.fromkeys((site.stack, site.attention, site.layer) for site in self.sites)
        return sorted(places, key=lambda place: (place[0] == "decoder", place[2], place[1] == "cross"))

    def row_names(self) -> list[str]:
        """What the rows are called: "0", "decoder cross 3"."""
        return [
            " ".join([*filter(None, (stack, attention if attention != "self" else "")), str(layer)])
            for stack, attention, layer in self.rows()
        ]

    def matrix(self, score: str) -> list[list[float | None]]:
        """Scores (rows, terms), None where a layer has no such term or the score is undefined."""
        at = {((site.stack, site.attention, site.layer), site.term): site.score(score) for site in self.sites}
        return [[at.get((row, term)) for term in self.terms] for row in self.rows()]

    def to_dict(self) -> dict[str, Any]:
        """The contents of importance.json."""
        return {
            "model": self.model,
            "task": self.task,
            "scores": {score: self.values(score) for score in (*SCORES, "effect")},
            "rankings": {score: self.ranking(score) for score in SCORES},
            "notes": self.notes,
            **self.about,
            "sites": [site.to_dict() for site in self.sites],
        }


def projection_score(before: Tensor, after: Tensor) -> float | None:
    """`1 - cos(b, b') min(|b|, |b'|) / max(|b|, |b'|)` of two vectors of one shape; None if either is zero."""
    a, b = before.double().flatten(), after.double().flatten()
    sizes = sorted((float(a.norm()), float(b.norm())))
    if sizes[0] == 0:
        return None
    return 1 - float(a @ b) / (sizes[0] * sizes[1]) * sizes[0] / sizes[1]


def magnitude_score(before: Tensor, after: Tensor) -> float:
    """Mean over features of `|b' - b|`."""
    return float((after.double() - before.double()).abs().mean())


def own_bias(model: nn.Module, site: Site) -> Tensor:
    """The bias that a model itself has at a site, fp32 (site.width,); zero if it has none."""
    bias = getattr(get_module(model, site.module), "bias", None)
    if not isinstance(bias, Tensor):
        return torch.zeros(site.width)
    return site.narrow(bias.detach()).float().cpu()


def undefined_terms(sites: Sequence[SiteScores]) -> list[str]:
    """Terms whose projection score is undefined at every layer."""
    defined = {site.term for site in sites if site.projection is not None}
    return [name for name in TERMS if name in {site.term for site in sites} - defined]
