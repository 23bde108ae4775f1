"""The contract of a method: what it trains, how that is saved, put back, and taken off again.

Every method works on a bank with one adapter, which holds the task's head and whatever biases the method asks for
(`terms`). So routes, heads, losses and predictions are the same for all; a method only adds leaves.

A new method is a class in one short file:

    class Scales(Method):
        name, summary, lr, grid = "scales", "one factor a norm", 1e-3, (3e-4, 1e-3, 3e-3)

        def attach(self, bank, name): ...     # give the leaves by name, those of the adapter included
        def files(self): ...                  # what to write besides the adapter's own files
        def restore(self, bank, name, directory): ...
        def detach(self): ...

and `register_method(Scales)` makes it known to `beft train --method` and `beft.train(..., method="scales")`;
`--method my_file.py:Scales` does so by itself. docs/extending.md has one in full.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from ..core.adapter import Adapter
from ..core.bank import Bank
from ..core.quantized import first_quantized
from ..core.sharded import is_sharded
from ..core.store import peft_can_load, peft_refusal, save_adapter
from ..errors import RecipeError
from ..files import Writer
from ..own_file import source_of


@dataclass(frozen=True)
class Options:
    """Settings of a method; None stands for the method's own choice."""

    terms: str = "value"
    """Biases, for methods that train biases."""
    layers: str | None = None
    """Layers, for methods that work at sites; None for all."""
    rank: int | None = None
    """Rank of a low-rank product."""
    alpha: float | None = None
    """A low-rank product is multiplied by alpha / rank."""
    mask_size: int | None = None
    """Parameters of a random mask."""
    virtual_tokens: int | None = None
    """Tokens of a prefix or a prompt."""
    seed: int = 0
    """Seeds what a method draws."""


HEAD_RATE = 3e-3
"""Of linear heads beside what learns slowly: the rate of biases, whose heads learn well at it."""


class Method:
    """One way to adapt a frozen model. An instance serves one model: `attach` (or `restore`), then `detach`.

    Attributes:
        name: what `--method` takes.
        summary: one line for a person.
        lr: default peak learning rate.
        grid: learning rates worth trying on dev rows, ascending.
        head_lr: least rate of a linear head, which mostly starts at zero, where the recipe names none; None: the
            method's own rate will do. A method whose own rate is far below would leave its head near where it began.
        heads: kinds of head it goes with: "linear" and "model" classify, "none" answers prompts.
        uses: names of the options that it heeds; one that is given and not heeded is refused.
        pooler: whether the pooler's bias is trained beside the model's own head.
        plain: whether what is saved is a bias adapter and nothing else.
        floats: whether it needs weights that are floating-point numbers, not quantised ones.
        fitted: whether the head is fitted in closed form instead of being trained.
        banked: whether many runs of it can share a bank: nothing is trained but the adapter's own leaves.
        shards: whether it leaves the model's own weights alone, so that they may lie in pieces in several processes.
    """

    name: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    lr: ClassVar[float] = 3e-3
    grid: ClassVar[tuple[float, ...]] = (1e-3, 3e-3, 1e-2)
    head_lr: ClassVar[float | None] = None
    heads: ClassVar[tuple[str, ...]] = ("linear", "model", "none")
    uses: ClassVar[tuple[str, ...]] = ()
    pooler: ClassVar[bool] = False
    plain: ClassVar[bool] = False
    floats: ClassVar[bool] = False
    fitted: ClassVar[bool] = False
    banked: ClassVar[bool] = False
    shards: ClassVar[bool] = False

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or Options()
        self.bank: Bank | None = None
        self.adapter: Adapter | None = None
        self.base_size = 0
        """Parameters of the model as it was loaded."""

    # ---- what a method says ------------------------------------------------------------------------------------------

    def terms(self, model: nn.Module, head: str) -> str:
        """Biases that the bank's adapter is to hold, see `beft.core.terms`; `head` as in `heads`."""
        return "none"

    def attach(self, bank: Bank, name: str) -> dict[str, nn.Parameter]:
        """Prepare the model for training. Gives all trained leaves by name, those of the bank's adapter included.

        Raises:
            RecipeError: a model that the method cannot work on.
        """
        return self.begin(bank, name)

    def files(self) -> Mapping[str, Writer | str | None]:
        """Files to write besides the adapter's own or in place of them; None leaves one out."""
        return {}

    def restore(self, bank: Bank, name: str, directory: Path) -> None:
        """Put back what `files` wrote, on a bank that holds the adapter of the folder already, for predicting."""
        self.begin(bank, name)

    def detach(self) -> None:
        """Take off what `attach` or `restore` did: the model, less its bank, is as before."""

    @property
    def reserved(self) -> int:
        """Positions of the model's that the method takes for itself."""
        return 0

    def peft_loads(self) -> str:
        """Empty if stock PEFT loads what is saved with equal outputs; otherwise why not, in one clause."""
        assert self.bank is not None
        assert self.adapter is not None
        return peft_can_load(self.adapter, self.bank.model) if self.plain else self.peft_refuses()

    def peft_refuses(self) -> str:
        """Empty unless stock PEFT cannot load what is saved at all; then why, in one clause."""
        assert self.bank is not None
        assert self.adapter is not None
        return peft_refusal(self.adapter, self.bank.model) if self.plain else f"PEFT knows no method {self.name}"

    # ---- what all have in common -------------------------------------------------------------------------------------

    def begin(self, bank: Bank, name: str) -> dict[str, nn.Parameter]:
        """Note the bank and its adapter, and the base as it is before it changes. Gives the adapter's leaves."""
        if self.floats and first_quantized(bank.model) is not None:
            raise RecipeError(
                f"method {self.name}",
                expected="a base in floating point",
                found="a quantised one",
                remedy="leave --quantize out, or train biases, lora or dora",
            )
        self.bank, self.adapter = bank, bank[name]
        self.base_size = sum(p.numel() for key, p in bank.model.named_parameters() if not key.startswith("beft."))
        if not self.plain or is_sharded(bank.model):
            bank.base_description()  # the bank keeps it: of changed weights, or in one process alone, it cannot be had
        return dict(self.adapter.leaves())

    def save(self, directory: Path, task: Mapping[str, Any] | None = None) -> Path:
        """Write the folder: the adapter's files, `files` and beft.json, which names the method and its options.

        Raises:
            StoreError: a value that is not finite, or a folder that cannot be written.
        """
        assert self.bank is not None
        assert self.adapter is not None
        return save_adapter(
            self.bank,
            self.adapter.name,
            directory,
            task,
            method=self.record(),
            others=self.files(),
            refusal=self.peft_refuses(),
        )

    def record(self) -> dict[str, Any]:
        """What beft.json says of the method; of one from outside, where its class was defined as well."""
        source = source_of(type(self))
        about = {"name": self.name, "plain": self.plain, "options": asdict(self.options)}
        return about if source is None else {**about, "source": source}

    @classmethod
    def check(cls, head: str, options: Options) -> None:
        """Refuse a head that the method does not go with, and options that it does not heed.

        Raises:
            RecipeError: see above.
        """
        if head not in cls.heads:
            wants = {"linear": "--head linear", "model": "--head model", "none": "prompts (--objective choose)"}
            found = "prompts, which have no head" if head == "none" else f"--head {head}"
            raise RecipeError(
                f"method {cls.name}", expected=" or ".join(wants[each] for each in cls.heads), found=found
            )
        ignored = [
            each.name
            for each in fields(Options)
            if each.name not in (*cls.uses, "seed") and getattr(options, each.name) != each.default
        ]
        if ignored:
            heeded = ", ".join(_flag(each) for each in cls.uses) or "no option of its own"
            raise RecipeError(
                f"method {cls.name}", expected=heeded, found=_flag(ignored[0]), remedy=f"leave {_flag(ignored[0])} out"
            )


def _flag(option: str) -> str:
    return "--" + option.replace("_", "-")
