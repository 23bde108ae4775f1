"""Data: the decoder tasks as prompts with candidates, after MeZO (arXiv 2305.17333), PromptSource and GPT-3."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Prompt:
    """How one task reads, and where its rows lie.

    `{field}` is a field of the row as `beft.tasks.reading` prepares it. `candidates` are the continuations in the order
    of the label's numbers; none where answers are written, and `{line}` is repeated for each entity. `labels` name the
    candidates where all rows have the same. `blank` is the prompt without the input, for calibration. `folders` are the
    names a local folder of the task may have, the first found counts; by default the task's.
    """

    name: str
    text: str
    candidates: tuple[str, ...]
    labels: tuple[str, ...] | None
    hub: tuple[str, str | None]
    metrics: tuple[str, ...] = ("accuracy",)
    blank: str = ""
    folders: tuple[str, ...] = ()


_NO_YES, _FALSE_TRUE = ("No", "Yes"), ("false", "true")

PROMPTS: dict[str, Prompt] = {
    prompt.name: prompt
    for prompt in (
        Prompt(
            "sst2",
            "{sentence} It was",
            (" terrible", " great"),
            ("negative", "positive"),
            ("glue", "sst2"),
            blank=" It was",
        ),
        Prompt(
            "rte",
            '{premise}\nDoes this mean that "{hypothesis}" is true? Yes or No?\n',
            ("Yes", "No"),
            ("entailment", "not_entailment"),
            ("super_glue", "rte"),
            folders=("superglue_rte", "rte"),
        ),
        Prompt(
            "cb",
            'Suppose {premise} Can we infer that "{hypothesis}"? Yes, No, or Maybe?\n',
            ("Yes", "No", "Maybe"),
            ("entailment", "contradiction", "neutral"),
            ("super_glue", "cb"),
            ("f1_macro", "accuracy"),
        ),
        Prompt("boolq", "{passage} {question}?\n", _NO_YES, _FALSE_TRUE, ("super_glue", "boolq")),
        Prompt(
            "wsc",
            '{text}\nIn the previous sentence, does the pronoun "{span2_text}" refer to {span1_text}? Yes or No?\n',
            _NO_YES,
            _FALSE_TRUE,
            ("super_glue", "wsc.fixed"),
        ),
        Prompt(
            "wic",
            'Does the word "{word}" have the same meaning in these two sentences? Yes, No?\n{sentence1}\n{sentence2}\n',
            _NO_YES,
            _FALSE_TRUE,
            ("super_glue", "wic"),
        ),
        Prompt(
            "multirc",
            '{paragraph}\nQuestion: {question}\nI found this answer "{answer}". Is that correct? Yes or No?\n',
            _NO_YES,
            _FALSE_TRUE,
            ("super_glue", "multirc"),
        ),
        Prompt(
            "copa",
            "{premise} {conjunction} ",
            ("{choice1}", "{choice2}"),
            None,
            ("super_glue", "copa"),
            blank="{conjunction} ",
        ),
        Prompt(
            "record",
            "{passage}\n-",
            (" {line}",),
            None,
            ("super_glue", "record"),
            ("accuracy", "token_f1"),
            blank="-",
        ),
        Prompt(
            "squad",
            "Title: {title}\nContext: {context}\nQuestion: {question}\nAnswer:",
            (),
            None,
            ("squad", None),
            ("token_f1", "em"),
        ),
        Prompt(
            "drop",
            "Passage: {passage}\nQuestion: {question}\nAnswer:",
            (),
            None,
            ("drop", None),
            ("token_f1", "em"),
        ),
    )
}
"""BoolQ: the question is capitalised and its own question mark taken off. WSC: the pronoun in lower case. COPA: the
premise without its full stop, "so" or "because", the choice with a small first letter (but "I" as it is)."""
