"""One self-contained HTML page: text, tables and pictures, light or dark as the reader's system is, no network."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .tables import Table, to_html


@dataclass
class Picture:
    """A PNG for a light page and one for a dark page, with a caption that says what it shows."""

    caption: str
    light: bytes
    dark: bytes


@dataclass
class Section:
    """A heading, paragraphs, tables and pictures, in this order."""

    title: str
    text: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = field(default_factory=list)


STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #22313f; --soft: #5b6a78; --line: #d9dee3; --tint: #f3f6f8;
  --accent: #1f6f8b; --lack: #b4541a; }
@media (prefers-color-scheme: dark) { :root { --paper: #171b20; --ink: #e3e7eb; --soft: #a3adb7; --line: #343b43;
  --tint: #20262d; --accent: #5cb6d3; --lack: #eda45c; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 84rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.8rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.25rem; margin: 2.75rem 0 .75rem; padding-top: 1rem; border-top: 1px solid var(--line); }
p { max-width: 46rem; }
.lead { color: var(--soft); font-size: 1.05rem; }
figure { margin: 1.25rem 0 1.75rem; }
figcaption { font-weight: 600; margin-bottom: .4rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .36rem .6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th:first-child { text-align: left; padding-left: .2rem; font-weight: 500; }
thead th { color: var(--soft); font-weight: 600; border-bottom: 2px solid var(--line); vertical-align: bottom; }
tbody tr:hover { background: var(--tint); }
.best { font-weight: 700; }
.second { text-decoration: underline; text-underline-offset: 3px; }
.missing { color: var(--lack); font-style: italic; }
.note { color: var(--soft); font-size: .86rem; margin: .45rem 0 0; }
img { max-width: 100%; height: auto; display: block; }
pre { background: var(--tint); border: 1px solid var(--line); border-radius: 6px; padding: .7rem .9rem;
  overflow-x: auto; font-size: .88rem; white-space: pre-wrap; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.2rem; font-size: .9rem; margin: 0; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
nav { font-size: .92rem; margin: 1rem 0 0; }
nav a { color: var(--accent); margin-right: 1.1rem; }
@media print { main { max-width: none; padding: 0; } nav { display: none; } }
""".strip()


def page(
    title: str, lead: str, sections: Sequence[Section], command: str, facts: Mapping[str, Mapping[str, str]]
) -> str:
    """The page's text.

    Args:
        lead: the question that the page answers.
        command: the exact command that made it.
        facts: groups of name and value for the last section (versions, machine, fingerprints of data and models).
    """
    ids = {section.title: f"s{number}" for number, section in enumerate(sections)}
    links = "".join(f'<a href="#{ids[section.title]}">{html.escape(section.title)}</a>' for section in sections)
    parts = [_section(section, ids[section.title]) for section in sections]
    groups = "".join(
        f"<h3>{html.escape(name)}</h3><dl>"
        + "".join(f"<dt>{html.escape(key)}</dt><dd>{html.escape(value)}</dd>" for key, value in values.items())
        + "</dl>"
        for name, values in facts.items()
        if values
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>\n{STYLE}\n</style>\n</head>\n<body>\n<main>\n"
        f'<h1>{html.escape(title)}</h1>\n<p class="lead">{html.escape(lead)}</p>\n'
        f'<nav>{links}<a href="#made">How it was made</a></nav>\n'
        + "\n".join(parts)
        + f'\n<section id="made"><h2>How it was made</h2>\n<pre>{html.escape(command)}</pre>\n{groups}</section>\n'
        "</main>\n</body>\n</html>\n"
    )


def _section(section: Section, anchor: str) -> str:
    paragraphs = "".join(f"<p>{html.escape(text)}</p>" for text in section.text)
    tables = "\n".join(map(to_html, section.tables))
    pictures = "\n".join(map(_picture, section.pictures))
    return (
        f'<section id="{anchor}"><h2>{html.escape(section.title)}</h2>\n{paragraphs}\n{tables}\n{pictures}\n</section>'
    )


def _picture(picture: Picture) -> str:
    caption = html.escape(picture.caption)
    return (
        f'<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{_data(picture.dark)}">'
        f'<img alt="{caption}" src="{_data(picture.light)}"></picture><p class="note">{caption}</p></figure>'
    )


def _data(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
