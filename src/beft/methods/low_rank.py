"""Low-rank biases: LoRA, DoRA, VeRA and one-scalar VeRA put into the bias (arXiv 2509.15974, table 4).

A bias vector of `width` entries is a small matrix, laid out flat: (24, 32) for 768. That matrix is a product of two
factors of rank r. Sources of the four forms: LoRA arXiv 2106.09685, DoRA 2402.09353, VeRA 2310.11454. What is trained
is the change of the bias that the model computes with; it is saved as a plain bias adapter, the factors multiplied
out, so that it merges and serves like any other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..core.adapter import Adapter
from ..core.bank import Bank
from ..core.sharded import whole
from ..core.sites import Site, get_module
from ..errors import RecipeError
from .bias import Bias
from .method import HEAD_RATE, Options
from .written import Written, add_gradient

D_START = 0.1
"""VeRA's scaling of the inner dimension at the start (its table 1: d initial)."""


def low_rank(a: Tensor, b: Tensor) -> Tensor:
    """The vector `A^T B^T`, flat: A (r, inner), B (outer, r), result (inner * outer,)."""
    return (a.T @ b.T).reshape(-1)


def lora(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """LoRA: `alpha / r * A^T B^T`. A starts Kaiming-uniform, B at zero: nothing is added at first."""
    return scale * low_rank(a, b)


def dora(a: Tensor, b: Tensor, norm: Tensor, bias: Tensor, scale: float) -> Tensor:
    """DoRA: the bias becomes `alpha / r * m * (A^T B^T + bias) / |A^T B^T + bias|`; given is the change.

    The norm m, one number, starts at |bias|. Gradients go through the denominator too.
    """
    moved = low_rank(a, b) + bias
    return scale * norm * moved / moved.norm() - bias


def vera(a: Tensor, b: Tensor, inner: Tensor, outer: Tensor, scale: float) -> Tensor:
    """VeRA: `alpha / r * A^T diag(d) B^T diag(b)` around frozen A and B; d (r,) starts at 0.1, b (outer,) at zero."""
    return scale * low_rank(a * inner[:, None], outer[:, None] * b)


def vera1(scalar: Tensor, width: int, scale: float) -> Tensor:
    """One-scalar VeRA: `alpha / r * s` added to every entry; s starts at 1."""
    return (scale * scalar).expand(width)


def factor_shape(width: int) -> tuple[int, int]:
    """(inner, outer): the two factors of a width nearest its root, the larger first; 768 is 32 x 24."""
    outer = next(each for each in range(math.isqrt(width), 0, -1) if width % each == 0)
    return width // outer, outer


Built = tuple[dict[str, nn.Parameter], Callable[[], Tensor]]
"""Leaves by name, and the vector that they make."""


class LowRankBias(Bias):
    """A bias method whose vectors are functions of fewer leaves, made by `build`."""

    lr = 4e-4
    grid = (4e-4, 1e-3, 3e-3)
    head_lr = HEAD_RATE
    uses: ClassVar[tuple[str, ...]] = ("terms", "layers", "rank", "alpha")
    banked = False

    def __init__(self, options: Options | None = None) -> None:
        super().__init__(options)
        self.rank = self.options.rank or 8
        self.scale = (self.options.alpha or 1.0) / self.rank
        self.written: Written | None = None

    def build(self, site: Site, model: nn.Module, draw: torch.Generator) -> Built:
        """Leaves of a site and the function of them that is its vector."""
        raise NotImplementedError

    def attach(self, bank: Bank, name: str) -> dict[str, nn.Parameter]:
        """See `Method.attach`: leaves are named `<module path>.<factor>`; a pooler's bias stays a plain vector."""
        leaves = self.begin(bank, name)
        adapter = bank[name]
        self.written = Written(bank)
        draw = torch.Generator().manual_seed(self.options.seed)
        own: dict[str, nn.Parameter] = {}
        keys = {id(leaf): key for key, leaf in leaves.items()}
        for site, vector in adapter.items():
            if not site.term.per_layer:
                continue
            made, value = self.build(site, bank.model, draw)
            key = keys[id(vector)]
            del leaves[key]
            own |= {f"{key}.{factor}": leaf for factor, leaf in made.items()}
            self.written.tie(vector, list(made.values()), *_computed(vector, list(made.values()), value))
        self.written.write()
        return {**own, **leaves}

    def files(self) -> dict[str, None]:
        """See `Method.files`: nothing of its own, but the vectors must be up to date."""
        if self.written is not None:
            self.written.write()
        return {}

    def detach(self) -> None:
        """See `Method.detach`: the adapter keeps the vectors, which are plain ones from now on."""
        if self.written is not None:
            self.written.write()
            self.written.release()

    def factors(self, site: Site, draw: torch.Generator, device: torch.device) -> tuple[Tensor, Tensor]:
        """A (r, inner) and B (outer, r), Kaiming-uniform as in LoRA (slope root 5)."""
        inner, outer = factor_shape(site.width)
        a, b = torch.empty(self.rank, inner), torch.empty(outer, self.rank)
        for factor in (a, b):
            nn.init.kaiming_uniform_(factor, a=math.sqrt(5), generator=draw)
        return a.to(device), b.to(device)


def _computed(
    vector: nn.Parameter, leaves: list[nn.Parameter], value: Callable[[], Tensor]
) -> tuple[Callable[[], object], Callable[[Tensor], None]]:
    """How a vector is written from its leaves, and its gradient passed on by the chain rule."""

    def pass_on(gradient: Tensor) -> None:
        with torch.enable_grad():
            gradients = torch.autograd.grad(value(), leaves, gradient)
        for leaf, own in zip(leaves, gradients, strict=True):
            add_gradient(leaf, own)

    return lambda: vector.copy_(value()), pass_on


class BiasLora(LowRankBias):
    """See `lora`."""

    name = "bias-lora"
    summary = "the bias as a low-rank product (--rank, --alpha): LoRA put into the bias"

    def build(self, site: Site, model: nn.Module, draw: torch.Generator) -> Built:
        """See `LowRankBias.build`."""
        a, b = self.factors(site, draw, _device(site, self.adapter))
        own = {"A": nn.Parameter(a), "B": nn.Parameter(torch.zeros_like(b))}
        return own, lambda: lora(own["A"], own["B"], self.scale)


class BiasDora(LowRankBias):
    """See `dora`. It needs biases to start from."""

    name = "bias-dora"
    summary = "norm and low-rank direction of the bias: DoRA put into the bias"

    def build(self, site: Site, model: nn.Module, draw: torch.Generator) -> Built:
        """See `LowRankBias.build`."""
        module: nn.Module = get_module(model, site.module)
        stored = getattr(module, "bias", None)
        if not isinstance(stored, Tensor) or not float(whole(stored).detach().float().norm()):
            raise RecipeError(
                "method bias-dora",
                expected="pretrained biases, whose norm and direction it trains",
                found=f"none at {site.module}" if stored is None else f"zeros at {site.module}",
                remedy="use bias-lora",
            )
        bias = site.narrow(whole(stored).detach().float())
        a, b = self.factors(site, draw, bias.device)
        own = {"A": nn.Parameter(a), "B": nn.Parameter(torch.zeros_like(b)), "norm": nn.Parameter(bias.norm())}
        return own, lambda: dora(own["A"], own["B"], own["norm"], bias, self.scale)


class BiasVera(LowRankBias):
    """See `vera`. Sites of one width share the frozen A and B."""

    name = "bias-vera"
    summary = "two scaling vectors around frozen random factors: VeRA put into the bias"

    def __init__(self, options: Options | None = None) -> None:
        super().__init__(options)
        self.frozen: dict[int, tuple[Tensor, Tensor]] = {}

    def build(self, site: Site, model: nn.Module, draw: torch.Generator) -> Built:
        """See `LowRankBias.build`."""
        device = _device(site, self.adapter)
        if site.width not in self.frozen:
            self.frozen[site.width] = self.factors(site, draw, device)
        a, b = (factor.to(device) for factor in self.frozen[site.width])
        own = {
            "d": nn.Parameter(torch.full((self.rank,), D_START, device=device)),
            "b": nn.Parameter(torch.zeros(len(b), device=device)),
        }
        return own, lambda: vera(a, b, own["d"], own["b"], self.scale)


class BiasVera1(LowRankBias):
    """See `vera1`."""

    name = "bias-vera1"
    summary = "one number a site, added to every entry: one-scalar VeRA put into the bias"

    def build(self, site: Site, model: nn.Module, draw: torch.Generator) -> Built:
        """See `LowRankBias.build`."""
        own = {"scalar": nn.Parameter(torch.ones((), device=_device(site, self.adapter)))}
        return own, lambda: vera1(own["scalar"], site.width, self.scale)


def _device(site: Site, adapter: Adapter | None) -> torch.device:
    assert adapter is not None
    return adapter.vector(site).device
