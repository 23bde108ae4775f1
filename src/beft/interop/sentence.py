"""Adapters in a `SentenceTransformer`: its own `encode`, with an adapter for each sentence.

    bank = beft.attach_sentence_transformer(st, names=["law", "news"])
    st.encode(texts, route=["law", "news", "law"])

The bank is attached to the transformers model inside. Pooling, normalising and whatever else follows stay as they are
and are frozen with it. `sentence_trainer` trains an adapter with sentence-transformers' own losses.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from torch import nn
from transformers import PreTrainedModel

from ..core.adapter import Adapter
from ..core.bank import Bank
from ..core.merge import AnyAdapter, merged
from ..core.patches import Patches
from ..core.route import Route
from ..core.sites import Layers
from ..errors import BankError, BeftError, RouteError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

ADAPTERS = "beft"
"""Folder beside a saved model that holds one adapter folder a name."""


class _Unset(Enum):
    UNSET = "the route in force"


UNSET = _Unset.UNSET
SentenceRoute = str | Sequence[str | None] | None | _Unset


def attach_sentence_transformer(
    st: SentenceTransformer,
    terms: str | Iterable[str] = "value",
    names: Sequence[str] = ("default",),
    layers: Layers = None,
    sites: Mapping[str, str] | None = None,
) -> SentenceBank:
    """Freeze a `SentenceTransformer` and attach adapters of zero vectors to the transformers model inside it.

    While attached, `st.encode`, `st.encode_query` and `st.encode_document` take `route=`: a name for all sentences, or
    one name a sentence (None is the plain model); without it the route in force counts, as everywhere. See
    `SentenceBank`. Other arguments are those of `beft.attach`.

    Raises:
        BeftError: sentence-transformers is not installed.
        BankError: no or several transformers models inside, a compiled one, or one that has a bank already.
        TermError, SiteError: see `beft.find_sites`.
    """
    return SentenceBank(st, terms=terms, names=names, layers=layers, sites=sites)


def merge_sentence_transformer(st: SentenceTransformer, adapter: AnyAdapter) -> SentenceTransformer:
    """A stock `SentenceTransformer` with an adapter folded into its weights: to save, to share, for encoding in a pool.

    `st` does not change; weights of its transformers model that are the same are shared. `adapter` is an adapter folder
    or several with weights, see `beft.merge`.

    Raises:
        BankError: the model is attached, or has no place for a vector; or the adapter has a linear head, which belongs
            to no sentence embedding (`beft merge` writes a folder for it).
        StoreError: see `Bank.load`.
    """
    inner = inner_model(st)
    result = merged(inner, adapter, st.tokenizer)
    if result.head is not None:
        raise BankError(
            "merge_sentence_transformer",
            expected="an adapter of vectors alone",
            found="one with a linear head",
            remedy="`beft merge` writes it with its head, as a folder that SentenceTransformer loads",
        )
    memo: dict[int, Any] = {id(inner): result.model}
    card = getattr(st, "model_card_data", None)
    if card is not None:  # it points back to the model
        memo[id(card)] = copy.copy(card)
    plain = copy.deepcopy(st, memo)
    if card is not None:
        memo[id(card)].model = plain
    return plain.eval()


def inner_model(st: Any) -> PreTrainedModel:
    """The one transformers model inside a `SentenceTransformer`.

    Raises:
        BeftError: sentence-transformers is not installed.
        BankError: not a `SentenceTransformer`, or none or several inside.
    """
    require_sentence_transformers()
    from sentence_transformers import SentenceTransformer

    if not isinstance(st, SentenceTransformer):
        raise BankError(
            type(st).__name__,
            expected="a SentenceTransformer",
            found=f"a {type(st).__name__}",
            remedy="beft.attach takes the transformers model inside any other",
        )
    inside = list(dict.fromkeys(_outermost(st)))
    if len(inside) != 1:
        raise BankError(
            type(st).__name__,
            expected="one transformers model in PyTorch inside",
            found=", ".join(type(each).__name__ for each in inside) or "none",
            remedy="attach to the one that is meant with beft.attach" if inside else "",
        )
    return inside[0]


def require_sentence_transformers() -> None:
    """Raises BeftError if sentence-transformers is not installed."""
    try:
        import sentence_transformers  # noqa: F401
    except ImportError as error:
        raise BeftError(
            "sentence-transformers",
            expected="the package sentence-transformers",
            found="none",
            remedy="install it: pip install 'beft[sentence]'",
        ) from error


def _outermost(module: nn.Module) -> Iterable[PreTrainedModel]:
    for child in module.children():
        if isinstance(child, PreTrainedModel):
            yield child
        else:
            yield from _outermost(child)


class SentenceBank(Bank):
    """The bank of a `SentenceTransformer`. Made by `beft.attach_sentence_transformer`; all else is as in `Bank`.

    While it is attached:

    - `st.encode(texts, route=...)` encodes each text with its own adapter, texts of several in one batch. Prompts,
      `batch_size`, `normalize_embeddings`, `convert_to_tensor` and the other options are sentence-transformers' own. A
      route of several names takes texts alone, and rows that are padded, not packed into one sequence (as with flash
      attention). Pools of processes are refused: their workers would encode without adapters.
    - `st.save` writes the plain stock model as ever, and beside it the folder `beft` with one adapter folder a name.
    - No parameter of `st` but the adapters' requires gradients.
    """

    def __init__(
        self,
        st: SentenceTransformer,
        terms: str | Iterable[str] = "value",
        names: Sequence[str] = ("default",),
        layers: Layers = None,
        sites: Mapping[str, str] | None = None,
    ) -> None:
        inner = inner_model(st)
        _refuse_compiled(st)
        frozen = [(parameter, parameter.requires_grad) for parameter in st.parameters()]
        super().__init__(inner, terms=terms, names=names, layers=layers, sites=sites)
        self.sentence_transformer = st
        self._frozen = frozen
        for parameter, _ in frozen:
            parameter.requires_grad_(False)
        self._stock_encode, self._stock_save = st.encode, st.save
        self._outer = Patches()
        self._outer.set(st, "encode", self._encode)
        self._outer.set(st, "save", self._save_beside)
        self._outer.set(st, "start_multi_process_pool", _refuse_pool)
        self._guards.append(st.register_load_state_dict_post_hook(self._refuse_plain))

    def detach(self) -> None:
        """Take the adapters out; the `SentenceTransformer` is as before. A second call does nothing."""
        super().detach()
        self._outer.undo()
        for parameter, required in self._frozen:
            parameter.requires_grad_(required)
        self._frozen = []

    def own_parameters(self) -> set[int]:
        """Ids of all parameters of the `SentenceTransformer`, the adapters' among them."""
        return {id(parameter) for parameter in self.sentence_transformer.parameters()}

    # ---- in place of the model's own methods -------------------------------------------------------------------------

    def _encode(self, inputs: Any = None, *args: Any, route: SentenceRoute = UNSET, **options: Any) -> Any:
        """`SentenceTransformer.encode`, under a route.

        Raises:
            RouteError: an unknown name, not one name a sentence, sentences that are no texts under a route of several
                names, or rows packed into one sequence.
            BankError: a pool of processes.
        """
        if inputs is None:
            inputs = options.pop("sentences", None)  # the older name
        stock = self._stock_encode
        given = inspect.signature(stock).bind(inputs, *args, **options).arguments
        if given.get("pool") is not None or isinstance(given.get("device"), list):
            _refuse_pool()
        names = self._names(route)
        if not isinstance(names, list):
            with self.route(names):
                return stock(inputs, *args, **options)
        texts = _texts(inputs, names)
        for name in dict.fromkeys(names):
            if name is not None:
                _ = self[name]
        if len(set(names)) <= 1:
            with self.route(names[0] if names else None):
                return stock(inputs, *args, **options)
        self.sentence_transformer.eval()
        rows = [_Text(text) for text in texts]
        for row, name in zip(rows, names, strict=True):
            row.adapter = name
        return _view(self).encode(rows, *args, **options)

    def _names(self, route: SentenceRoute) -> str | list[str | None] | None:
        """What a route says: one name, or a list of one a sentence."""
        if not isinstance(route, _Unset):
            return route if route is None or isinstance(route, str) else list(route)
        current = self.current_route()
        if isinstance(current, Route):
            of: list[Adapter | None] = [*current.adapters, None]
            return [each.name if (each := of[place]) is not None else None for place in current.index.tolist()]
        return None if current.adapter is None else current.adapter.name

    def _save_beside(self, path: Any, *args: Any, **options: Any) -> None:
        """`SentenceTransformer.save`, and the adapters beside the model.

        Raises:
            StoreError: see `Bank.save`.
        """
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "save_pretrained writes the base")  # here the adapters do follow
            self._stock_save(path, *args, **options)
        if path is not None:
            for name in self.names:
                self.save(name, Path(path) / ADAPTERS / quote(name, safe=" "))

    def _refuse_plain(self, st: nn.Module, incompatible: Any) -> None:
        adapters = {id(leaf) for _, leaf in self.named_parameters()}
        own = {key for key, parameter in st.named_parameters() if id(parameter) in adapters}
        if own and own <= set(incompatible.missing_keys):
            raise BankError(
                "load_state_dict",
                expected="weights with the adapters of the bank",
                found="a plain model's, as in checkpoints of the stock trainer",
                remedy="train with beft.BeftSentenceTransformerTrainer, or bank.load the adapters beside them",
            )


class _Text(str):
    """A text with the adapter that encodes it."""

    adapter: str | None = None


class _Rows:
    """Mixed into a model's class: `encode` sorts the texts as it likes, and each batch runs under their adapters."""

    _beft_bank: SentenceBank
    _beft_names: list[str | None]

    def preprocess(self, inputs: Sequence[_Text], *args: Any, **options: Any) -> Any:
        features = super().preprocess([str(text) for text in inputs], *args, **options)  # type: ignore[misc]
        if "cu_seq_lens_q" in features:
            raise RouteError(
                "route of several names",
                expected="rows that are padded to one length",
                found="rows packed into one sequence",
                remedy="set st[0].unpad_inputs = False, or encode the sentences of each adapter by themselves",
            )
        self.__dict__["_beft_names"] = [text.adapter for text in inputs]
        return features

    def forward(self, features: Any, **options: Any) -> Any:
        with self._beft_bank.route(self._beft_names):
            return self._beft_bank.sentence_transformer(features, **options)

    __call__ = forward  # hooks and compiled graphs are the model's own: they run inside


def _view(bank: SentenceBank) -> Any:
    """The bank's model for one call of `encode`: the same modules, a state of its own, so that threads do not mix."""
    st = bank.sentence_transformer
    view: Any = object.__new__(type(type(st).__name__, (_Rows, type(st)), {}))
    shared = {key: value for key, value in st.__dict__.items() if key not in ("encode", "_distributed_inference")}
    view.__dict__.update(shared, _beft_bank=bank)
    return view


def _texts(inputs: Any, names: list[str | None]) -> list[str]:
    if isinstance(inputs, str):
        raise RouteError(
            f"route={names}", expected="a name for a single sentence", found="a list", remedy="give the name alone"
        )
    texts = list(inputs)
    if len(texts) != len(names):
        raise RouteError(
            f"route over {len(names)} sentences", expected="one name a sentence", found=f"{len(texts)} sentences"
        )
    odd = next((text for text in texts if not isinstance(text, str)), None)
    if odd is not None and len(set(names)) > 1:
        raise RouteError(
            "route of several names",
            expected="texts",
            found=f"a {type(odd).__name__}",
            remedy="encode the inputs of each adapter by themselves, under its name",
        )
    return texts


def _refuse_compiled(st: nn.Module) -> None:
    if st._compiled_call_impl is not None:
        raise BankError(
            type(st).__name__,
            expected="a model that is not compiled yet",
            found="a compiled one, which ignores new hooks",
            remedy="attach first, then compile",
        )


def _refuse_pool(*args: Any, **options: Any) -> Any:
    raise BankError(
        "encoding in a pool of processes",
        expected="a model without a bank",
        found="an attached one, whose adapters do not reach other processes",
        remedy="merge the adapter with beft.merge_sentence_transformer and encode with that model",
    )
