"""A tree holds each shared token once, and every branch sees its own path alone."""

import torch

from beft.objectives.packing import pack
from beft.objectives.tree import collate, plant, read
from tiny import TINY

LLAMA = TINY["llama"].config()


def test_tokens_are_shared_and_the_last_ones_only_predicted():
    tree = plant([1, 2], [[5, 6, 7], [5, 8], [9], [5, 6]])
    assert tree.tokens == [1, 2, 5, 6]
    assert tree.reads == [[1, 2, 3], [1, 2], [1], [1, 2]]
    assert tree.chain
    assert tree.scored == 3
    forked = plant([1, 2], [[5, 6, 7], [8, 6, 7]])
    assert forked.tokens == [1, 2, 5, 6, 8, 6]
    assert forked.parents == [1, 2, 1, 4]
    assert forked.depths() == [0, 1, 2, 3, 2, 3]
    assert not forked.chain


def test_the_mask_shows_each_token_its_path():
    forked = plant([1, 2], [[5, 6, 7], [8, 6, 7]])
    batch = collate([forked, plant([3], [[4]])], 0, LLAMA, torch.float32, "cpu")
    sees = (batch["attention_mask"][:, 0] == 0).int().tolist()
    assert sees[0] == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [1, 1, 0, 0, 1, 1],
    ]
    assert sees[1] == torch.eye(6, dtype=int).tolist()
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 2, 3], [0] * 6]
    assert list(collate([plant([3], [[4], [5, 6]])], 0, LLAMA, torch.float32, "cpu")) == ["input_ids"]


def test_sums_add_the_log_probabilities_of_each_candidate():
    trees = [plant([1, 2], [[3, 0], [3, 1, 2]]), plant([1], [[2]])]
    reading = read(trees, 4, "cpu")
    assert reading.states.tolist() == [1, 2, 3, 4]
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    log = logits.log_softmax(-1)
    want = torch.stack([log[0, 3] + log[1, 0], log[0, 3] + log[1, 1] + log[2, 2], log[3, 2]])
    assert torch.allclose(reading.sums(logits), want, atol=1e-6)
    with torch.no_grad():
        assert torch.allclose(reading.sums(logits.bfloat16()), want, atol=0.1)


def test_packing():
    assert pack([3, 9, 4, 2], 10) == [[1], [2, 0], [3]]
    assert pack([3, 3, 3, 3], 100, scored=[2, 2, 3, 1], most_scored=4) == [[0, 1], [2, 3]]
    assert pack([9, 9, 3, 3], 100, alone=5) == [[0], [1], [2, 3]]
    assert pack([30, 1], 10) == [[0], [1]]
