"""The page stands alone: no address but data in it, and what it is given is escaped."""

import re

from beft.report.page import Picture, Section, page
from beft.report.tables import Field, Table

TABLE = Table("scores <1>", ["method", "sst2"], [[Field("value"), Field("0.8", "best", "5 seeds")]], ["a & b"])


def test_nothing_is_fetched_and_everything_is_there() -> None:
    picture = Picture('say "hi"', b"light", b"dark")
    text = page(
        "A <study>",
        "why?",
        [Section("Scores", ["5 < 6"], [TABLE], [picture])],
        "beft study x",
        {"Data": {"sst2": "ab"}},
    )
    assert not re.findall(r"""(?:src|href|srcset)=["'](?!data:|#)""", text)
    assert not re.search(r"https?:|@import|url\(", text)
    for part in ("A &lt;study&gt;", "5 &lt; 6", "scores &lt;1&gt;", "a &amp; b", "say &quot;hi&quot;", "beft study x",
                 "prefers-color-scheme: dark", "bGlnaHQ=", "ZGFyaw==", '<td class="best" title="5 seeds">0.8</td>',
                 "<dt>sst2</dt><dd>ab</dd>"):  # fmt: skip
        assert part in text


def test_every_opened_element_is_closed() -> None:
    text = page("t", "l", [Section("a", ["b"], [TABLE])], "c", {})
    for name in ("html", "head", "body", "main", "section", "figure", "table", "tr", "td", "h2", "p", "div", "style"):
        assert len(re.findall(rf"<{name}[ >]", text)) == text.count(f"</{name}>"), name
