"""Methods of biases and heads alone: any set of terms (arXiv 2509.15974), all of them (BitFit), or none.

Sources: BEFT, arXiv 2509.15974; BitFit, arXiv 2106.10199. "head" is what remains of a bias run without its term, the
fair baseline; "frozen" leaves out the pooler's bias too.
"""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from ..core.sites import available_terms
from ..core.terms import BUILT_IN
from .method import Method


def every_term(model: nn.Module, head: str) -> str:
    """BitFit's biases: all of beft's own terms that the model has; the pooler's where something reads the pooler."""
    names = [term.name for term in available_terms(model) if term.name in BUILT_IN]
    return "+".join(name for name in names if name != "pooler" or head == "model")


class Bias(Method):
    """The biases of the chosen terms, one vector a site."""

    name = "bias"
    summary = "vectors added at the chosen terms (--terms, --layers); the default"
    lr = 3e-3
    grid = (1e-3, 3e-3, 1e-2)
    uses: ClassVar[tuple[str, ...]] = ("terms", "layers")
    pooler = True
    plain = True
    banked = True
    shards = True

    def terms(self, model: nn.Module, head: str) -> str:
        """See `Method.terms`."""
        return self.options.terms


class BitFit(Bias):
    """All biases of the model."""

    name = "bitfit"
    summary = "all biases: the eight terms of a layer, the embeddings' norm and the pooler (BitFit)"
    lr = 1e-3
    grid = (3e-4, 1e-3, 3e-3)
    uses = ("layers",)
    pooler = False  # it is among the terms

    def terms(self, model: nn.Module, head: str) -> str:
        """See `Method.terms`."""
        return every_term(model, head)


class Head(Bias):
    """The head, with the pooler's bias where the model's own head is trained."""

    name = "head"
    summary = "the head alone, as a bias run without its term: with the pooler's bias, if the model has one"
    heads: ClassVar[tuple[str, ...]] = ("linear", "model")
    uses = ()

    def terms(self, model: nn.Module, head: str) -> str:
        """See `Method.terms`."""
        return "none"


class Frozen(Head):
    """The classifier, and nothing else."""

    name = "frozen"
    summary = "the classifier alone"
    pooler = False


class Probe(Frozen):
    """A linear head, fitted to frozen states instead of being trained."""

    name = "probe"
    summary = "a linear head fitted by scikit-learn to frozen mean-pooled states"
    heads = ("linear",)
    fitted = True
