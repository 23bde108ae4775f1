"""Fisher scores: mean squared gradients of biases at the pretrained weights, over the training examples.

The gradient of a bias is that of a vector added beside it, so zero vectors of a bank take the biases' place, whether
the model has biases or not.
"""

from __future__ import annotations

import torch
from torch import nn

from ..core.bank import Bank
from ..core.probe import evaluating
from ..training.aims import Aim, Part, Share
from ..training.infer import Watch

BATCH = 8
CLIP = 1.0
"""The paper's variant: batches of so many examples, the norm of the gradient (head included) at most this."""


def fisher_scores(
    bank: Bank, name: str, aim: Aim, part: Part, watch: Watch | None = None
) -> dict[tuple[str, str], tuple[float, float]]:
    """Both variants by the key of a site: (the paper's, the textbook's).

    The textbook's is `mean_i g_i^2` over examples i, then over features, g_i the gradient of example i's loss. The
    paper's is `mean_B c_B^2` over batches B of 8 examples in the order they come, c_B the gradient of the batch's mean
    loss, its norm over all vectors and the head clipped at 1.

    Args:
        bank: holds the adapter `name`, whose vectors must be zero and whose head must pass gradients back.
        aim: of that adapter, with an unweighted loss.
    """
    adapter = bank[name]
    leaves: list[nn.Parameter] = bank.parameters(name)
    batch = [torch.zeros_like(leaf) for leaf in leaves]
    papers, textbook = ([torch.zeros_like(leaf, dtype=torch.float64) for leaf in leaves] for _ in range(2))
    rows, batches = len(part.examples), 0
    aim.fit(part)
    with evaluating(bank.model), torch.enable_grad(), bank.route(name):
        for row in range(rows):
            gradients = _gradients(aim, part, row, leaves)
            for place, gradient in enumerate(gradients):
                batch[place] += gradient
                textbook[place] += gradient.double().square()
            if (row + 1) % BATCH == 0 or row + 1 == rows:
                size = row % BATCH + 1
                norm = float(torch.nn.utils.get_total_norm(batch)) / size
                factor = min(1.0, CLIP / norm) / size if norm else 0.0
                for place, summed in enumerate(batch):
                    papers[place] += (summed.double() * factor).square()
                    summed.zero_()
                batches += 1
            if watch is not None:
                watch(1, rows - row - 1)
    place_of = {id(leaf): place for place, leaf in enumerate(leaves)}
    scores = {}
    for site, vector in adapter.items():
        place = place_of[id(vector)]
        scores[site.key] = (float(papers[place].mean()) / batches, float(textbook[place].mean()) / rows)
    return scores


def _gradients(aim: Aim, part: Part, row: int, leaves: list[nn.Parameter]) -> list[torch.Tensor]:
    """Gradient of one example's loss; zero for a leaf that the loss does not hang on."""
    loss = aim.summed([Share(aim, part, [row])])[0]
    found = torch.autograd.grad(loss, leaves, allow_unused=True)
    return [torch.zeros_like(leaf) if each is None else each for each, leaf in zip(found, leaves, strict=True)]
