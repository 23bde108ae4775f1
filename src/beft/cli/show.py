"""`beft show`: the examples of a prompt task exactly as a model gets them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from ..errors import DataError, RecipeError, StoreError
from . import options as o
from .prompting import line_ends
from .screen import console, notes, print_json

if TYPE_CHECKING:
    from ..tasks.question import PromptTask, Question

PROMPT = "Prompt"


def show(
    task: Annotated[
        str | None,
        typer.Argument(
            help="sst2 rte cb boolq wsc wic multirc copa record squad drop; or none with --data.", metavar="[TASK]"
        ),
    ] = None,
    data: o.Data = None,
    template: Annotated[
        str | None,
        typer.Option(
            "--template",
            help=r"The prompt: columns as {column}, braces doubled, \n for a line end.",
            rich_help_panel=o.DATA,
        ),
    ] = None,
    candidates: Annotated[
        str | None,
        typer.Option(
            "--candidates",
            help="What to choose from: 'negative= bad,positive= good', ' bad| good', or a column of lists.",
            rich_help_panel=o.DATA,
        ),
    ] = None,
    label: Annotated[
        str | None,
        typer.Option("--label", help="Column that says which candidate is right.", rich_help_panel=o.DATA),
    ] = None,
    answer: Annotated[
        str | None,
        typer.Option("--answer", help="Column of the text to write, without candidates.", rich_help_panel=o.DATA),
    ] = None,
    blank: Annotated[
        str | None,
        typer.Option(
            "--blank", help="The prompt without its input, for calibration; a template too.", rich_help_panel=o.DATA
        ),
    ] = None,
    eval_data: Annotated[
        str | None, typer.Option("--eval-data", help="Your evaluation rows.", rich_help_panel=o.DATA)
    ] = None,
    data_dir: o.DataDir = None,
    split: Annotated[
        str, typer.Option("--split", help="Rows to show: train or eval.", rich_help_panel=o.TASK)
    ] = "train",
    seed: Annotated[int, typer.Option("--seed", help="Draws the demonstrations.", rich_help_panel=o.TASK)] = 0,
    rows: Annotated[int, typer.Option("--rows", "-n", min=1, help="Examples to show.", rich_help_panel=PROMPT)] = 3,
    k: Annotated[
        int, typer.Option("--k", "-k", min=0, help="Demonstrations in front of each.", rich_help_panel=PROMPT)
    ] = 0,
    fixed: Annotated[
        bool, typer.Option("--fixed", help="The same demonstrations for all examples.", rich_help_panel=PROMPT)
    ] = False,
    chat: Annotated[
        bool, typer.Option("--chat", help="In the chat template of the model's tokenizer.", rich_help_panel=PROMPT)
    ] = False,
    system: Annotated[
        str | None, typer.Option("--system", help="The system message of a chat.", rich_help_panel=PROMPT)
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", help="A language model: counts tokens, scores candidates.", rich_help_panel=o.MAIN
        ),
    ] = None,
    scores: Annotated[
        bool,
        typer.Option("--scores/--no-scores", help="Run the model, or load its tokenizer only.", rich_help_panel=o.MAIN),
    ] = True,
    json: o.Json = False,
    trust_remote_code: o.TrustRemoteCode = False,
) -> None:
    """Show the first examples of a task as prompts, with candidates, the right answer, tokens and scores.

    `beft show sst2`

    `beft show --data reviews.csv --template "{text} It was" --candidates "no= bad,yes= good" --label liked`
    """
    _check(
        task,
        data,
        template,
        {"--candidates": candidates, "--label": label, "--answer": answer, "--blank": blank, "--eval-data": eval_data},
        chat,
        system,
        model,
    )
    if split not in ("train", "eval"):
        raise RecipeError(f"--split {split}", expected="train or eval")
    from ..tasks.ask import own_prompt_task
    from ..tasks.reading import prompt_task

    if data is None:
        shown = prompt_task(task or "", data_dir, seed=seed)
    else:
        shown = own_prompt_task(
            data,
            line_ends(template or ""),
            candidates=None if candidates is None else line_ends(candidates),
            label=label,
            answer=answer,
            blank=line_ends(blank or ""),
            evaluation=eval_data,
            hold_out=split == "eval",
            seed=seed,
        )
    reader = _Reader(model, scores, trust_remote_code) if model else None
    records = _records(shown, split, rows, k, fixed, chat, system, seed, reader)
    if reader and scores:
        _add_scores(records, shown, reader)
    if json:
        print_json([{**vars(record.pop("question")), **record} for record in records])
        return
    _heading(shown)
    for record in records:
        _show(record, shown)
    notes(shown.notices)


def _check(
    task: str | None,
    data: str | None,
    template: str | None,
    own: dict[str, str | None],
    chat: bool,
    system: str | None,
    model: str | None,
) -> None:
    if (task is None) == (data is None):
        raise RecipeError("TASK and --data", expected="one of them", found="both" if task else "neither")
    given = [name for name, value in {"--template": template, **own}.items() if value is not None]
    if task is not None and given:
        raise RecipeError(given[0], expected="--data beside it", found=f"the task {task}")
    if data is not None and template is None:
        raise RecipeError(
            "--data", expected="--template beside it", found="none", remedy='e.g. --template "{text} It was"'
        )
    if chat and model is None:
        raise RecipeError("--chat", expected="--model, for its chat template", found="none")
    if system is not None and not chat:
        raise RecipeError("--system", expected="--chat beside it", found="none")


class _Reader:
    """A model's tokenizer and how much the model reads; with `scores` the model too."""

    def __init__(self, name: str, scores: bool, trust_remote_code: bool) -> None:
        from ..objectives.encode import usable_length
        from ..objectives.prompt_tokens import context_limit

        self.model: Any = None
        if scores:
            from ..training.language import load_language_model
            from ..training.machine import choose

            base = load_language_model(name, choose(), trust_remote_code=trust_remote_code)
            self.model, self.tokenizer, config = base.model, base.tokenizer, base.model.config
        else:
            self.tokenizer, config = _tokenizer(name, trust_remote_code)
        self.limit = min(context_limit(config), usable_length(self.tokenizer))

    def tokens(self, question: Question) -> tuple[int, bool]:
        """Tokens of the prompt as the model gets it, and whether it was cut."""
        from ..objectives.prompt_tokens import encode_prompts

        encoded = encode_prompts(self.tokenizer, [question], self.limit)
        return len(encoded.prompts[0]), bool(encoded.cut)

    def fits(self, text: str) -> bool:
        """Whether the model reads the whole text."""
        return len(self.tokenizer(text, verbose=False)["input_ids"]) <= self.limit


def _tokenizer(name: str, trust_remote_code: bool) -> tuple[Any, Any]:
    """Tokenizer and configuration of a model that is not loaded."""
    from transformers import AutoConfig, AutoTokenizer

    from ..core.probe import quiet_transformers
    from ..training.base import base_folder

    folder = base_folder(name)
    with quiet_transformers():
        try:
            return (
                AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code),
                AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code),
            )
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise StoreError(
                f"model {name!r}",
                expected="a transformers model with its tokenizer",
                found=" ".join(str(error).split())[:160] or type(error).__name__,
            ) from error


def _records(
    task: PromptTask,
    split: str,
    rows: int,
    k: int,
    fixed: bool,
    chat: bool,
    system: str | None,
    seed: int,
    reader: _Reader | None,
) -> list[dict[str, Any]]:
    """The first questions of a split, made ready, with what is to be said of them."""
    from ..tasks.chat import as_chat
    from ..tasks.demonstrations import with_demonstrations
    from ..tasks.question import Question

    part = task.train if split == "train" else next(iter(task.evaluation.values()), [])
    if not part:
        raise DataError(task.name, expected="evaluation rows", found="none")

    def ready(question: Question) -> Question:
        return as_chat(question, reader.tokenizer, system) if chat and reader else question

    def fits(text: str) -> bool:
        return reader is None or reader.fits(ready(Question(0, text)).prompt)

    asked = with_demonstrations(part[:rows], task.train, k, seed, mode="fixed" if fixed else "per_example", fits=fits)
    records = []
    for number, question in enumerate(map(ready, asked), 1):
        record: dict[str, Any] = {"question": question, "number": number, "of": len(part), "split": split}
        if reader:
            record["tokens"], record["cut"] = reader.tokens(question)
        records.append(record)
    return records


def _add_scores(records: Sequence[dict[str, Any]], task: PromptTask, reader: _Reader) -> None:
    questions = [record["question"] for record in records]
    if questions[0].candidates:
        from ..objectives.choose import score_candidates

        found: list[Any] = score_candidates(reader.model, reader.tokenizer, questions)
    else:
        from ..objectives.generate import generate_answers

        found = generate_answers(reader.model, reader.tokenizer, questions, stop=task.stop)
    for record, value in zip(records, found, strict=True):
        record["scores" if record["question"].candidates else "written"] = value


def _heading(task: PromptTask) -> None:
    counts = ", ".join(f"{len(part):,} in {name}" for name, part in task.evaluation.items())
    kind = "answers to write" if task.generates else "candidates to choose from"
    console.print(
        f"[bold]{escape(task.name)}[/]  {kind}; {len(task.train):,} training questions" + f", {counts}" * bool(counts)
    )


def _show(record: dict[str, Any], task: PromptTask) -> None:
    question: Question = record["question"]
    facts = [f"{record['split']} {record['number']} of {record['of']:,}", f"id {question.id}"]
    if question.shots:
        facts.append(f"{question.shots} demonstrations" if question.shots > 1 else "1 demonstration")
    if "tokens" in record:
        facts.append(f"{record['tokens']:,} tokens" + (", cut on the left" if record["cut"] else ""))
    console.print(f"\n[bold cyan]── {escape(', '.join(facts))}[/]")
    console.print(visible(question.prompt))
    best = max(record["scores"]) if record.get("scores") else None
    names = question.names or task.labels or ()
    for number, candidate in enumerate(question.candidates):
        mark = "[bold green]→[/]" if number in question.gold else " "
        name = f"  [dim]{escape(names[number])}[/]" if names else ""
        score = ""
        if best is not None:
            value = record["scores"][number]
            score = f"  [{'bold' if value == best else 'dim'}]{value:.3f}[/]" + (" best" if value == best else "")
        console.print(f"  {mark} {visible(candidate)}{name}{score}")
    for number, answer in enumerate(question.answers):
        console.print(f"  {'[bold green]→[/]' if number == 0 else '[green]or[/]'} {visible(answer)}")
    if "written" in record:
        console.print(f"  [dim]the model writes[/] {visible(record['written'])}")
    if question.blank:
        console.print(f"  [dim]blank[/] {visible(question.blank)}")


def visible(text: str) -> str:
    """Text as markup that shows line ends (⏎), tabs (⇥), and spaces at the ends of lines and of the text (·)."""
    lines = text.split("\n")
    shown = []
    for line in lines:
        bare = line.strip(" ")
        before = len(line) - len(line.lstrip(" ")) if bare else 0
        after = len(line) - before - len(bare)
        body = escape(bare).replace("\t", "[dim]⇥[/]\t").replace("\r", "[dim]␍[/]")
        shown.append(_dots(before) + body + _dots(after))
    return "[dim]⏎[/]\n".join(shown)


def _dots(count: int) -> str:
    return f"[dim]{'·' * count}[/]" if count else ""
