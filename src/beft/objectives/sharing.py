"""Which questions share the beginning of their prompts so far that one row may hold them all.

A passage with several questions, or fixed demonstrations in front of every question, is then computed once a row: the
questions are branches of a tree, as their candidates are.
"""

from __future__ import annotations

from collections.abc import Sequence

LEAST_SHARE = 256
"""Branches of a tree are split over several rows beyond this many tokens, or as many as the prompt's if more."""
LEAST_PREFIX = 32
"""Tokens in common below which sharing is not worth a mask."""
MOST_COST = 0.8
"""Tokens of a shared row at most, as a share of its questions' own rows."""


def room(prompt: int) -> int:
    """Tokens of all branches of a row: so many that attention among them, masked in vain, stays small."""
    return max(LEAST_SHARE, prompt)


def common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two prompts begin with in common."""
    most = min(len(first), len(second))
    if first[:most] == second[:most]:
        return most
    return next(place for place in range(most) if first[place] != second[place])


def groups(prompts: Sequence[list[int]], branches: Sequence[int], most: int) -> list[tuple[list[int], int]]:
    """Numbers of the prompts in groups, each with the tokens that its members begin with in common.

    Args:
        prompts: tokens of each prompt.
        branches: tokens that each prompt's candidates take.
        most: tokens of a shared row at most.

    Returns:
        Every number once; a group of one has its whole prompt in common with itself.
    """
    found: list[tuple[list[int], int]] = []
    for number in sorted(range(len(prompts)), key=lambda number: prompts[number]):
        if found:
            members, _ = found[-1]
            shared = common(prompts[members[0]], prompts[number])  # sorted: no member has less in common with the first
            if _worth([*members, number], shared, prompts, branches, most):
                found[-1] = ([*members, number], shared)
                continue
        found.append(([number], len(prompts[number])))
    return found


def _worth(
    members: Sequence[int], shared: int, prompts: Sequence[list[int]], branches: Sequence[int], most: int
) -> bool:
    """Whether one row for the members costs clearly less than a row for each."""
    if shared < LEAST_PREFIX:
        return False
    apart = sum(len(prompts[number]) + branches[number] for number in members)
    own = apart - shared * len(members)
    return own <= room(shared) and shared + own <= min(most, MOST_COST * apart)
