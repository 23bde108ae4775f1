"""The vocabulary: which bias of a transformer layer is meant.

Symbols and names follow BitFit (arXiv 2106.10199, section 3) and the BEFT paper (arXiv 2509.15974). A post-norm layer
(BERT) reads

    q, k, v = W_q x + b_q, W_k x + b_k, W_v x + b_v
    h1 = LN(x + W_m1 attention(q, k, v) + b_m1) + b_LN1
    h2 = activation(W_m2 h1 + b_m2)
    h3 = LN(h1 + W_m3 h2 + b_m3) + b_LN2

In pre-norm layers (GPT, OPT, Llama) the norms stand in front of their sub-block: `attention_norm` is then the norm
whose output feeds attention, `output_norm` the norm whose output feeds the feed-forward part. An RMSNorm has no bias of
its own: the term is a vector added to its output, which is what a bias would be. A layer that runs both parts side by
side behind one norm (GPT-J, Phi, Falcon-7B) has an `attention_norm` and no `output_norm`. In a gated feed-forward part
`W_down (act(W_gate x) * W_up x)` the term `intermediate` is the bias of W_up.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from ..errors import TermError, nearest
from ..own_file import is_reference, load_object


@dataclass(frozen=True)
class Term:
    """One kind of bias: its name here, its symbol in plain text, its LaTeX, and what it does.

    `per_layer` is False for a bias that a model has once. `paths` are for terms from outside (`register_term`): where
    the module is, below a layer or, once a model, at the end of its path; the first that is found counts.
    """

    name: str
    symbol: str
    latex: str
    meaning: str
    per_layer: bool = True
    paths: tuple[str, ...] = field(default=(), repr=False)

    def __str__(self) -> str:
        return self.name


TERMS: dict[str, Term] = {
    term.name: term
    for term in (
        Term("query", "b_q", r"\mathbf{b}_q", "bias of the query projection; acts through the attention weights"),
        Term("key", "b_k", r"\mathbf{b}_k", "bias of the key projection; cancels in softmax unless positions rotate"),
        Term("value", "b_v", r"\mathbf{b}_v", "bias of the value projection; a constant added to what attention says"),
        Term("attention_output", "b_m1", r"\mathbf{b}_{m1}", "bias of attention's output projection"),
        Term("attention_norm", "b_LN1", r"\mathbf{b}_{LN1}", "bias of the norm that belongs to attention"),
        Term("intermediate", "b_m2", r"\mathbf{b}_{m2}", "bias of the feed-forward part's first projection"),
        Term("output", "b_m3", r"\mathbf{b}_{m3}", "bias of the feed-forward part's second projection"),
        Term("output_norm", "b_LN2", r"\mathbf{b}_{LN2}", "bias of the norm that belongs to the feed-forward part"),
        Term("embedding_norm", "b_LN0", r"\mathbf{b}_{LN0}", "bias of the embeddings' norm (once a model)", False),
        Term("pooler", "b_p", r"\mathbf{b}_p", "bias of the pooler's dense layer (once a model)", False),
    )
}
BUILT_IN: tuple[str, ...] = tuple(TERMS)
LAYER_TERMS: tuple[str, ...] = tuple(name for name, term in TERMS.items() if term.per_layer)

ALIASES: dict[str, str] = {
    **{name: name for name in TERMS},
    **{term.symbol.lower(): name for name, term in TERMS.items()},
    **{term.symbol.lower().removeprefix("b_"): name for name, term in TERMS.items()},
}


def register_term(term: Term) -> Term:
    """Make a term from outside known by its name and its symbol. "all" goes on to mean the eight terms of the paper.

    Raises:
        TermError: a name or symbol that is taken, a name that `--terms` could not read, or no paths.
    """
    where = f"register_term({term.name!r})"
    names = {term.name: term.name} | dict.fromkeys(_symbols(term), term.name)
    taken = next((each for each in names if each in ALIASES or each in ("all", "none")), None)
    if taken is not None:
        raise TermError(where, expected="a new name and symbol", found=f"{taken!r}, which is taken")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", term.name):
        raise TermError(where, expected="small letters, digits and underscores", found=repr(term.name))
    if isinstance(term.paths, str) or not term.paths:
        remedy = "name the modules below a layer, such as paths=('mlp.gate_proj',)"
        raise TermError(where, expected="a tuple of paths", found=repr(term.paths), remedy=remedy)
    TERMS[term.name] = term
    ALIASES.update(names)
    return term


def _symbols(term: Term) -> tuple[str, str]:
    return term.symbol.lower(), term.symbol.lower().removeprefix("b_")


def _from_file(reference: str) -> Term:
    """The term that "my_file.py:name" points to, registered."""
    term = load_object(reference, lambda each: isinstance(each, Term), "a term (beft.Term)")
    return term if TERMS.get(term.name) == term else register_term(term)


QUALIFIERS = ("self", "cross", "encoder", "decoder")


@dataclass(frozen=True)
class Selection:
    """A term and, in models with several kinds of attention, which of them (`value@cross`, `value@encoder`)."""

    term: Term
    qualifiers: frozenset[str] = frozenset()

    def admits(self, attention: str, stack: str) -> bool:
        """Whether a site of this attention ("self" or "cross") in this stack ("encoder" or "decoder") is meant."""
        return self.qualifiers <= {attention, stack}

    def __str__(self) -> str:
        return "@".join([self.term.name, *sorted(self.qualifiers)])


def parse_terms(terms: str | Iterable[str]) -> tuple[Selection, ...]:
    """Read `"value"`, `"v"`, `"b_v"`, `"value+query"`, `"m1"`, `"LN1"`, `"value@cross"`, `"all"` or a list of such.

    `"my_file.py:gate"` is the term `gate` of a file of one's own.

    "all" stands for the eight terms of a layer, BitFit's set without the once-a-model biases; "none" for no term, which
    leaves an adapter its head alone. Case does not matter and a term named twice counts once.

    Raises:
        TermError: a name that is no term or no qualifier, or no name at all.
        ExtensionError: a file that cannot be loaded or has no such term.
    """
    texts = terms.replace(",", "+").split("+") if isinstance(terms, str) else list(terms)
    chosen: dict[Selection, None] = {}
    for text in texts:
        name, *qualifiers = str(text).strip().split("@")
        qualifiers = [each.lower() for each in qualifiers]
        name = name if is_reference(name) else name.lower()
        for qualifier in qualifiers:
            if qualifier not in QUALIFIERS:
                remedy = nearest(qualifier, QUALIFIERS)
                raise TermError(f"terms={terms!r}", expected="a qualifier", found=repr(qualifier), remedy=remedy)
        if name == "none":
            continue
        if is_reference(name):
            chosen[Selection(_from_file(name), frozenset(qualifiers))] = None
        elif name == "all":
            chosen.update((Selection(TERMS[each], frozenset(qualifiers)), None) for each in LAYER_TERMS)
        elif name in ALIASES:
            chosen[Selection(TERMS[ALIASES[name]], frozenset(qualifiers))] = None
        else:
            remedy = nearest(name, [*TERMS, *(term.symbol for term in TERMS.values()), "all", "none"])
            raise TermError(f"terms={terms!r}", expected="a term", found=repr(text), remedy=remedy)
    if not chosen and "none" not in map(str.lower, texts):
        raise TermError(f"terms={terms!r}", expected="at least one term", remedy="known: " + ", ".join(TERMS))
    return tuple(chosen)


def same_terms(several: Iterable[str]) -> tuple[str, str] | None:
    """The first two texts that name the same terms, such as "v" and "b_v" or "query+value" and "value+query".

    Raises:
        As `parse_terms`.
    """
    seen: dict[frozenset[Selection], str] = {}
    for text in several:
        named = frozenset(parse_terms(text))
        if named in seen:
            return seen[named], text
        seen[named] = text
    return None


def parse_term(name: str) -> Term:
    """The one term of a name.

    Raises:
        TermError: no term, or several.
    """
    chosen = parse_terms(name)
    if len(chosen) != 1:
        raise TermError(f"term {name!r}", expected="one term", found=str(len(chosen)))
    return chosen[0].term
