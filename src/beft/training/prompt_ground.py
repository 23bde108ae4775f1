"""Where runs of prompts begin: a language model with its bank, questions tokenised once, zero-shot judged once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..core.bank import Bank
from ..objectives.prompt_tokens import context_limit
from ..tasks.question import NEW_TOKENS, PromptTask
from ..tasks.task import Example, split_texts
from .aims import Part, Share, judged_together
from .base import Base, add_adapter
from .baselines import commonest
from .grounds import make_parts, watching, with_splits
from .language import settle_attention
from .loop import Run
from .machine import Choices
from .plan import HELD_OUT, Plan
from .progress import Listener
from .prompt_aims import PromptAim
from .ranks import here
from .recipe import Recipe
from .result import Begun, Result
from .signals import StopRequest


@dataclass
class PromptTokens:
    """A task's questions with their tokens, and how its answers are written."""

    task: PromptTask
    generation: dict[str, Any]
    train: Part
    evaluation: dict[str, Part]
    notices: list[str]


class PromptGround:
    """A language model and its bank, on which runs of questions begin. No head is trained."""

    def __init__(self, model: str, base: Base, bank: Bank, choices: Choices) -> None:
        self.model, self.base, self.bank, self.choices = model, base, bank, choices
        self._tokens: dict[tuple[int, int], PromptTokens] = {}
        self._zero_shot: dict[Any, dict[str, Any]] = {}

    def begin(
        self,
        plan: Plan,
        directory: Path | None,
        listener: Listener,
        stop: StopRequest,
        *,
        with_baselines: bool,
        resume: bool = False,
    ) -> Begun:
        """Add the adapter of a plan (resolved), and everything its run needs. The baseline is the plain model.

        Raises:
            DataError: see `PromptAim.part`.
        """
        task, recipe = plan.own_task(), plan.recipe
        assert isinstance(task, PromptTask)
        assert recipe is not None
        method = recipe.new_method()
        longest = context_limit(self.base.model.config, recipe.max_length + method.reserved) - method.reserved
        tokens = self._tokenise(plan, longest)
        task = replace(task, generation=tokens.generation)
        train = tokens.train if plan.rows is None else tokens.train.take(plan.rows)
        evaluation = tokens.evaluation if plan.judged is None else {HELD_OUT: tokens.train.take(plan.judged)}
        parts = make_parts(train, evaluation, recipe, *_dev_split(task, recipe))
        metrics: dict[str, Any] = {"task": task.name, "objective": "generate" if task.generates else "choose"}
        metrics["baselines"] = {}
        if with_baselines and evaluation:
            key = (id(plan.task), longest, None if plan.judged is None else tuple(plan.judged))
            if key not in self._zero_shot:
                self._zero_shot[key] = self._judge_plain(task, longest, evaluation, listener, stop)
            metrics["baselines"] = dict(self._zero_shot[key])
        add_adapter(self.bank, self.base, plan.name, replace(recipe, head="none"))
        leaves = method.attach(self.bank, plan.name)  # after the baseline, which is of the plain model
        aim = self._aim(plan.name, task, longest)
        run = Run(self.bank, plan.name, aim, recipe, self.choices, parts, directory, listener, stop, leaves)
        notices = [*task.notices, *tokens.notices]
        result = Result(metrics, directory, task, recipe, self.choices, run.position.history, notices=notices)
        return Begun(run, method, result, evaluation, description(task, recipe, self.choices), self.model)

    def _aim(self, name: str | None, task: PromptTask, longest: int) -> PromptAim:
        return PromptAim(self.bank, name, task, self.base.tokenizer, self.choices, longest)

    def _judge_plain(
        self, task: PromptTask, longest: int, evaluation: dict[str, Part], listener: Listener, stop: StopRequest
    ) -> dict[str, Any]:
        rows = sum(len(part.examples) for part in evaluation.values())
        watch, plain = watching(listener, stop, "zero-shot", rows), self._aim(None, task, longest)
        splits = {
            name: judged_together([Share.whole(plain, part)], watch)[0].metrics for name, part in evaluation.items()
        }
        if not all(splits.values()):
            return {}
        found = {"zero_shot": with_splits(splits)}
        golds = [question.label for question in task.train if question.gold] if task.labels else []
        if golds:
            common = int(commonest(golds))
            found["majority"] = with_splits(
                {name: plain.measure(part.examples, [common] * len(part.examples)) for name, part in evaluation.items()}
            )
        return found

    def _tokenise(self, plan: Plan, longest: int) -> PromptTokens:
        """The whole task's tokens, made once for all runs of as many tokens at most."""
        task = plan.task
        assert isinstance(task, PromptTask)
        aim = self._aim(None, task, longest)
        key = (id(task), aim.limit)  # the tokens keep the task, so that its id stays its own
        if key not in self._tokens:
            train = aim.part(task.train, to_learn=True)
            generation, notices = settle_generation(task, train, aim.limit)
            aim = self._aim(None, replace(task, generation=generation), longest)
            judged = {name: aim.part(questions) for name, questions in task.evaluation.items()}
            settle_together(aim, [train, *judged.values()])
            settle_attention(self.base.model, self.choices, max(aim.lengths(train)))
            settle_together(aim, [train, *judged.values()])  # the kernel may be another now
            for name, part in {"train": train, **judged}.items():
                read = part.learned or part.encoded
                if read.cut:
                    notices.append(
                        f"{read.cut} of {len(part.examples)} {name} prompts were cut on the left to {read.limit} tokens"
                    )
            self._tokens[key] = PromptTokens(task, generation, train, judged, notices)
        return self._tokens[key]


def settle_generation(task: PromptTask, train: Part, limit: int) -> tuple[dict[str, Any], list[str]]:
    """A task's generation settings with the number of new tokens, and what is to be said of it.

    Where none is set, the longest answer that is learned sets it: at least 50, beyond that at most half of the limit.
    """
    if not task.generates or train.learned is None:
        return task.generation, []
    answers = [len(candidates[0]) for candidates in train.learned.candidates]
    settled = {"max_new_tokens": min(max(NEW_TOKENS, *answers), max(NEW_TOKENS, limit // 2)), **task.generation}
    most = settled["max_new_tokens"]
    if not (longer := sum(count > most for count in answers)):
        return settled, []
    return settled, [
        f"{longer} of {len(answers)} train answers are longer than the {most} tokens that are written "
        "(--generation max_new_tokens=N)"
    ]


def settle_together(aim: PromptAim, parts: Sequence[Part]) -> None:
    """Of a sharded model, find out in all ranks at once which shortcuts it allows, before each has rows of its own."""
    lockstep = here().lockstep
    if lockstep is None:
        return
    encoded = [each for part in parts for each in (part.encoded, part.learned) if each is not None]
    longest = max(
        len(prompt) + (sum(map(len, candidates)) or NEW_TOKENS)
        for each in encoded
        for prompt, candidates in zip(each.prompts, each.candidates, strict=True)
    )
    with lockstep.alike():
        aim.learner.ways.settle(longest)


def description(task: PromptTask, recipe: Recipe, choices: Choices) -> dict[str, Any]:
    """How rows become prompts, kept in beft.json for `evaluate` and `predict`."""
    return {
        "name": task.name,
        "objective": "generate" if task.generates else "choose",
        "benchmark": task.benchmark,
        "fields": list(task.fields),
        "labels": None if task.labels is None else list(task.labels),
        "metrics": list(task.metrics),
        "stop": list(task.stop),
        "generation": task.generation,
        "asked": task.asked,
        "chat": task.chat,
        "max_length": recipe.max_length,
        "dtype": choices.dtype,
        "quantize": choices.quantize,
    }


def _dev_split(task: PromptTask, recipe: Recipe) -> tuple[list[int], list[int]]:
    size = round(len(task.train) * recipe.dev_fraction)
    if recipe.selection != "dev" or size < 1:
        return list(range(len(task.train))), []
    rows = [Example(number, (question.prompt,), question.label) for number, question in enumerate(task.train)]
    return split_texts(rows, size, recipe.seed, classes=task.labels is not None)
