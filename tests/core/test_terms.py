import pytest

from beft.core.terms import ALIASES, LAYER_TERMS, TERMS, parse_terms
from beft.errors import TermError


def names(terms):
    return [str(each) for each in parse_terms(terms)]


@pytest.mark.parametrize("text", ["value", "v", "b_v", "V", " B_V ", ["value"], ("v", "b_v"), "value+v", "v,value"])
def test_one_term_by_any_of_its_names(text):
    assert names(text) == ["value"]


@pytest.mark.parametrize(
    ("alias", "term"),
    [
        ("q", "query"),
        ("k", "key"),
        ("m1", "attention_output"),
        ("LN1", "attention_norm"),
        ("b_LN1", "attention_norm"),
        ("m2", "intermediate"),
        ("m3", "output"),
        ("ln2", "output_norm"),
        ("ln0", "embedding_norm"),
        ("p", "pooler"),
    ],
)
def test_symbols(alias, term):
    assert names(alias) == [term]


def test_no_alias_stands_for_two_terms():
    assert set(ALIASES.values()) == set(TERMS)
    for name in TERMS:
        assert ALIASES[name] == name


def test_several_keep_their_order():
    assert names("key+query") == ["key", "query"]
    assert names("value, output") == ["value", "output"]


def test_all_is_the_eight_terms_of_a_layer():
    assert names("all") == list(LAYER_TERMS)
    assert len(LAYER_TERMS) == 8
    assert names("all+pooler")[-1] == "pooler"
    assert names("all+value") == list(LAYER_TERMS)


def test_qualifiers():
    (selection,) = parse_terms("value@Cross")
    assert str(selection) == "value@cross"
    assert selection.admits("cross", "decoder")
    assert not selection.admits("self", "decoder")
    (both,) = parse_terms("v@decoder@self")
    assert str(both) == "value@decoder@self"
    assert both.admits("self", "decoder")
    assert not both.admits("self", "encoder")


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("valeu", "did you mean 'value'?"),
        ("", "known: query"),
        ([], "known: query"),
        ("value@corss", "did you mean 'cross'?"),
        ("value+", "known"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(text, hint):
    with pytest.raises(TermError) as caught:
        parse_terms(text)
    assert hint.lower() in str(caught.value).lower()
