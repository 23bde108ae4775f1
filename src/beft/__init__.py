"""beft: adapt a frozen language model with one learned bias vector per attention layer."""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if "OMP_WAIT_POLICY" not in os.environ:
    # How long a thread of torch's on Linux waits awake for the others, in turns of a loop, before it sleeps. Of itself
    # it waits milliseconds, which on a busy machine the others do not get. Read when torch is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

if TYPE_CHECKING:
    from .analysis.scores import Score as Score
    from .analysis.scores import register_score as register_score
    from .core.adapter import Adapter as Adapter
    from .core.adapter import LinearHead as LinearHead
    from .core.adapter import ModelHead as ModelHead
    from .core.bank import Bank as Bank
    from .core.bank import attach as attach
    from .core.families import register_family as register_family
    from .core.merge import merge as merge
    from .core.merge import unmerge as unmerge
    from .core.ship import merge_checkpoint as merge_checkpoint
    from .core.ship import unmerge_checkpoint as unmerge_checkpoint
    from .core.sites import Site as Site
    from .core.sites import find_sites as find_sites
    from .core.steering import export_steering as export_steering
    from .core.steering import steering_vectors as steering_vectors
    from .core.terms import Term as Term
    from .core.terms import register_term as register_term
    from .core.verify import verify_sites as verify_sites
    from .errors import BeftError as BeftError
    from .extend import use as use
    from .interop.peft import peft_config as peft_config
    from .interop.sentence import SentenceBank as SentenceBank
    from .interop.sentence import attach_sentence_transformer as attach_sentence_transformer
    from .interop.sentence import merge_sentence_transformer as merge_sentence_transformer
    from .interop.sentence_trainer import BeftSentenceTransformerTrainer as BeftSentenceTransformerTrainer
    from .interop.sklearn import BeftClassifier as BeftClassifier
    from .interop.sklearn import BeftRegressor as BeftRegressor
    from .interop.trainer import BeftTrainer as BeftTrainer
    from .methods.method import Method as Method
    from .methods.method import Options as Options
    from .methods.registry import register_method as register_method
    from .tasks.ask import own_prompt_task as own_prompt_task
    from .tasks.load import benchmark_task as benchmark_task
    from .tasks.own import own_task as own_task
    from .tasks.question import PromptTask as PromptTask
    from .tasks.question import Question as Question
    from .tasks.reading import prompt_task as prompt_task
    from .tasks.registered import register_task as register_task
    from .tasks.task import Example as Example
    from .tasks.task import Task as Task
    from .training.curve import Curve as Curve
    from .training.curve import learning_curve as learning_curve
    from .training.many import ManyResult as ManyResult
    from .training.many import train_many as train_many
    from .training.plan import Plan as Plan
    from .training.predictor import Predictor as Predictor
    from .training.predictor import load as load
    from .training.recipe import Recipe as Recipe
    from .training.recipe import paper_recipe as paper_recipe
    from .training.recipe import prompt_recipe as prompt_recipe
    from .training.space import Space as Space
    from .training.train import Result as Result
    from .training.train import train as train
    from .training.tune import tune as tune
    from .training.tune_result import TuneResult as TuneResult

_HOMES = {
    "Score": "analysis.scores",
    "register_score": "analysis.scores",
    "Adapter": "core.adapter",
    "LinearHead": "core.adapter",
    "ModelHead": "core.adapter",
    "Bank": "core.bank",
    "attach": "core.bank",
    "register_family": "core.families",
    "merge": "core.merge",
    "unmerge": "core.merge",
    "merge_checkpoint": "core.ship",
    "unmerge_checkpoint": "core.ship",
    "Site": "core.sites",
    "find_sites": "core.sites",
    "export_steering": "core.steering",
    "steering_vectors": "core.steering",
    "Term": "core.terms",
    "register_term": "core.terms",
    "verify_sites": "core.verify",
    "BeftError": "errors",
    "use": "extend",
    "peft_config": "interop.peft",
    "attach_sentence_transformer": "interop.sentence",
    "merge_sentence_transformer": "interop.sentence",
    "SentenceBank": "interop.sentence",
    "BeftSentenceTransformerTrainer": "interop.sentence_trainer",
    "BeftClassifier": "interop.sklearn",
    "BeftRegressor": "interop.sklearn",
    "BeftTrainer": "interop.trainer",
    "Method": "methods.method",
    "Options": "methods.method",
    "register_method": "methods.registry",
    "own_prompt_task": "tasks.ask",
    "benchmark_task": "tasks.load",
    "own_task": "tasks.own",
    "PromptTask": "tasks.question",
    "Question": "tasks.question",
    "prompt_task": "tasks.reading",
    "register_task": "tasks.registered",
    "Task": "tasks.task",
    "Example": "tasks.task",
    "Curve": "training.curve",
    "learning_curve": "training.curve",
    "ManyResult": "training.many",
    "train_many": "training.many",
    "Plan": "training.plan",
    "Predictor": "training.predictor",
    "load": "training.predictor",
    "Recipe": "training.recipe",
    "paper_recipe": "training.recipe",
    "prompt_recipe": "training.recipe",
    "Result": "training.train",
    "train": "training.train",
    "Space": "training.space",
    "tune": "training.tune",
    "TuneResult": "training.tune_result",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import beft` does not import torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'beft' has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
