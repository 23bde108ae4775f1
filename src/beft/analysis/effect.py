"""How much a value vector moves attention: `|W_o repeat_kv(b_v)|` relative to the attention output.

Rows of softmax sum to one, so a value vector adds the constant `W_o repeat_kv(b_v)` to the attention output at every
position. Unlike the projection score its size is defined where the model has no bias of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from ..core.adapter import Adapter
from ..core.bank import Bank
from ..core.merge import residual_constant
from ..core.probe import evaluating
from ..core.quantized import is_quantized
from ..core.sites import get_module


def relative_effects(
    bank: Bank, adapter: Adapter, batches: Iterable[dict[str, Tensor]]
) -> dict[tuple[str, str], float]:
    """By the key of each value site: norm of the constant over the mean norm of the plain model's attention outputs.

    The mean is over all positions of the batches, which therefore must have no padding. Value sites without a known
    output projection, or with one whose weight cannot be read, are left out.
    """
    sites = {
        site.key: site
        for site in adapter.sites
        if site.term.name == "value" and site.output and not is_quantized(get_module(bank.model, site.output))
    }
    sizes: dict[str, list[float]] = {site.output: [] for site in sites.values()}
    handles = [get_module(bank.model, path).register_forward_hook(_note(found)) for path, found in sizes.items()]
    try:
        with evaluating(bank.model), bank.route(None):
            for batch in batches:
                bank.model(**batch)
    finally:
        for handle in handles:
            handle.remove()
    effects = {}
    for key, site in sites.items():
        shift = adapter.vector(site).detach() * adapter.scale
        constant = residual_constant(get_module(bank.model, site.output), site, shift)
        norms = sizes[site.output]
        effects[key] = float(constant.norm()) / (sum(norms) / len(norms))
    return effects


def _note(found: list[float]) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, output: Tensor) -> None:
        found.extend(output.detach().float().reshape(-1, output.shape[-1]).norm(dim=-1).tolist())

    return hook
