"""Templates: fields of any name, doubled braces, and what is no template."""

import pytest

from beft.errors import DataError
from beft.tasks.template import Template


def test_fields_are_filled_in_as_they_are() -> None:
    template = Template.parse("{a}: {my column}, {a.b[0]!r:>3} {a}")
    assert template.fields == ("a", "my column", "a.b[0]!r:>3")
    values = {"a": "{b} {{}}", "my column": "x\ny", "a.b[0]!r:>3": "z"}
    assert template.fill(values) == "{b} {{}}: x\ny, z {b} {{}}"


@pytest.mark.parametrize(
    ("text", "filled"),
    [("{{a}}", "{a}"), ("{{{a}}}", "{1}"), ('{{"k": "{a}"}}', '{"k": "1"}'), ("{ a }", "1"), ("}}{{", "}{"), ("", "")],
)
def test_doubled_braces_stand_for_braces_as_in_python(text: str, filled: str) -> None:
    assert Template.parse(text).fill({"a": "1"}) == filled
    if text != "{ a }":  # where Python would look for a field with spaces
        assert text.format(a="1") == filled


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x {a", r"template, character 3: expected a field as \{column\}, found a single '\{'. Double it"),
        ("x a}", r"template, character 4: .* found a single '\}'"),
        ("{a{b}", r"character 1: .* single '\{'"),
        ("x {} y", r"template, character 3: expected a field's name, found '\{\}'"),
        ("x { }", r"expected a field's name, found '\{ \}'"),
    ],
)
def test_what_is_no_template_is_named_with_its_place(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Template.parse(text)
