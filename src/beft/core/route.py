"""A route: which adapter each row of a batch uses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import RouteError
from .adapter import Adapter


class Route:
    """Adapters and, where there are several, the index of each row's among them.

    Two index tensors of shape (rows,) are kept: `index` counts among the distinct adapters of this route (so that the
    others get no gradient), `index_all` among all adapters of the bank (so that a compiled graph, whose tables have a
    fixed size, serves every route). In both, the number after the last adapter means None, the plain model.
    """

    def __init__(self, adapters: Sequence[Adapter | None], everyone: Sequence[Adapter], device: torch.device) -> None:
        distinct = list(dict.fromkeys(each for each in adapters if each is not None))
        self.adapters: tuple[Adapter, ...] = tuple(distinct)
        self.everyone: tuple[Adapter, ...] = tuple(everyone)
        self.rows = len(adapters)
        self.expand = 1  # rows of the batch a row of the route: `generate` repeats them, or a row is two inputs
        places = self._places(adapters, distinct)
        self.index = torch.tensor(places, device=device)
        self.index_all = torch.tensor(self._places(adapters, everyone), device=device)
        counts = Counter(places)
        self.counts = [counts[number] for number in range(len(distinct) + 1)]
        """Rows of each adapter, then of the plain model: known without asking the device."""
        self.grouped = places == sorted(places)
        """Whether the rows of each adapter follow one another, in the adapters' order."""

    @staticmethod
    def _places(rows: Sequence[Adapter | None], among: Sequence[Adapter]) -> list[int]:
        place: dict[Adapter | None, int] = {each: number for number, each in enumerate(among)}
        place[None] = len(among)
        return [place[each] for each in rows]

    def shift(self, path: str, output: Tensor) -> Tensor | None:
        """What to add to a module's output (rows, ..., features): one gather, in the output's dtype; or None.

        Raises:
            RouteError: the output has another number of rows than the route.
        """
        if torch.compiler.is_compiling():
            adapters, index = self.everyone, self.index_all
        else:
            adapters, index = self.adapters, self.index
        shifts = [adapter.shift(path) for adapter in adapters]
        there = [each for each in shifts if each is not None]
        if not there:
            return None
        repeats = self.repeats(output.shape[0], path, flat=output.ndim == 2)
        zero = torch.zeros_like(there[0])
        table = torch.stack([zero if each is None else each for each in shifts] + [zero])  # (adapters + 1, features)
        rows = (index if repeats == 1 else index.repeat_interleave(repeats)).to(output.device)
        picked = table.to(output).index_select(0, rows)  # (rows, features)
        return picked.reshape(len(rows), *(1,) * (output.ndim - 2), picked.shape[-1])

    def repeats(self, rows: int, where: str, flat: bool = False) -> int:
        """How often each row of the route comes, one after the other, among so many rows of a batch.

        Once; as often as `generate` repeats it; or, in a module that sees (rows x length, features) as OPT's
        feed-forward part does (`flat`), once a token.

        Raises:
            RouteError: the rows are not those of the route.
        """
        if rows == self.rows:
            return 1
        if rows == self.rows * self.expand:
            return self.expand
        if flat and rows % self.rows == 0:
            return rows // self.rows
        raise RouteError(
            f"route over {self.rows} rows",
            expected=f"a batch of {self.rows} rows",
            found=f"{rows} at {where}",
            remedy="name one adapter a row; a packed batch, or a module that also runs on other tensors (DeBERTa's "
            "query and key), takes one adapter for the whole batch",
        )


class SingleRoute:
    """One adapter, or None for the plain model, for every row of any batch."""

    def __init__(self, adapter: Adapter | None) -> None:
        self.adapter = adapter
        self.adapters: tuple[Adapter, ...] = () if adapter is None else (adapter,)

    def shift(self, path: str, output: Tensor) -> Tensor | None:
        """The adapter's vector (features,) in the output's dtype, or None."""
        if self.adapter is None:
            return None
        shift = self.adapter.shift(path)
        return None if shift is None else shift.to(output)  # a layer that was offloaded runs elsewhere than it lies


AnyRoute = Route | SingleRoute
