"""Tables as Markdown, LaTeX (booktabs) and HTML: the same fields, best bold, second underlined, missing said so."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

Mark = Literal["", "best", "second", "missing"]


@dataclass(frozen=True)
class Field:
    """A field's text and how it is marked; `hint` says more where there is room (a tooltip in HTML)."""

    text: str
    mark: Mark = ""
    hint: str = ""


@dataclass
class Table:
    """A header, rows of fields (the first column is of names, the others are numbers), and notes below."""

    title: str
    header: Sequence[str]
    rows: list[list[Field]]
    notes: list[str] = field(default_factory=list)


def marked(texts: Sequence[str], values: Sequence[float | None], hints: Sequence[str] = ()) -> list[Field]:
    """Fields of one column: the highest value best, the next second (ties share a mark), None missing.

    Texts decide what is equal: two values that read alike are not told apart. A single known value has no mark.
    """
    known = sorted({value for value in values if value is not None}, reverse=True)
    text_of = {value: text for text, value in zip(texts, values, strict=True) if value is not None}
    ranked = list(dict.fromkeys(text_of[value] for value in known))
    places: dict[str, Mark] = dict(zip(ranked[:2], ("best", "second"), strict=False)) if len(ranked) > 1 else {}
    return [
        Field(text, "missing" if value is None else places.get(text, ""), hint)
        for text, value, hint in zip(texts, values, hints or [""] * len(texts), strict=True)
    ]


def to_markdown(table: Table) -> str:
    """A GitHub-flavoured table with its title as a bold line above and its notes below."""

    def cell(each: Field) -> str:
        text = each.text.replace("|", "\\|")
        return {"best": f"**{text}**", "second": f"<u>{text}</u>", "missing": f"*{text}*"}.get(each.mark, text)

    header = [name.replace("|", "\\|") for name in table.header]
    lines = [f"**{table.title}**", "", "| " + " | ".join(header) + " |", "| --- |" + " ---: |" * (len(header) - 1)]
    lines += ["| " + " | ".join(map(cell, row)) + " |" for row in table.rows]
    lines += [line for note in table.notes for line in ("", note)]
    return "\n".join(lines) + "\n"


_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "–": "--", "<": r"\textless{}",
    ">": r"\textgreater{}",
}  # fmt: skip


def latex_text(text: str) -> str:
    """Text with LaTeX's special characters escaped."""
    return "".join(_LATEX.get(character, character) for character in text)


def to_latex(table: Table, label: str = "") -> str:
    r"""A `table` environment for booktabs: best in `\textbf`, second in `\underline`, missing in `\textit`."""

    def cell(each: Field) -> str:
        text = latex_text(each.text)
        command = {"best": "textbf", "second": "underline", "missing": "textit"}.get(each.mark)
        return f"\\{command}{{{text}}}" if command else text

    rows = [" & ".join(map(cell, row)) + r" \\" for row in table.rows]
    notes = " ".join(latex_text(note) for note in table.notes)
    lines = [
        r"\begin{table}[t]",
        r"  \centering",
        rf"  \caption{{{latex_text(table.title)}.{' ' + notes if notes else ''}}}",
        *([rf"  \label{{tab:{re.sub('[^a-z0-9]+', '-', label.lower()).strip('-')}}}"] if label else []),
        rf"  \begin{{tabular}}{{l{'r' * (len(table.header) - 1)}}}",
        r"    \toprule",
        "    " + " & ".join(map(latex_text, table.header)) + r" \\",
        r"    \midrule",
        *(f"    {row}" for row in rows),
        r"    \bottomrule",
        r"  \end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def to_html(table: Table) -> str:
    """A `figure` with a table, for `page`."""

    def cell(each: Field, first: bool) -> str:
        hint = f' title="{html.escape(each.hint)}"' if each.hint else ""
        mark = f' class="{each.mark}"' if each.mark else ""
        text = html.escape(each.text)
        return f'<th scope="row"{hint}>{text}</th>' if first else f"<td{mark}{hint}>{text}</td>"

    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in table.header)
    body = "\n".join(
        "<tr>" + "".join(cell(each, place == 0) for place, each in enumerate(row)) + "</tr>" for row in table.rows
    )
    notes = "".join(f'<p class="note">{html.escape(note)}</p>' for note in table.notes)
    return (
        f"<figure><figcaption>{html.escape(table.title)}</figcaption>"
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'
        f"{notes}</figure>"
    )
