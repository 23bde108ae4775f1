"""`use`: what a file of one's own adds to beft, made known before anything else is done with it."""

from __future__ import annotations

from typing import Any

from .own_file import is_reference, load_file, load_object

used: list[str] = []
"""What `use` was given, in order, for other processes of a job to use too."""


def use(source: str) -> None:
    """Load a file of one's own, as `beft --use` does. Everything that it registers is known from then on.

    Args:
        source: "my_file.py", or "my_file.py:name" to register that object of it besides: a term, a method or a score
            by its own name, a task by the variable's.

    Raises:
        ExtensionError: no such file or object, or one that is none of these.
        BeftError: a name that is taken.
    """
    used.append(source)
    if not is_reference(source) or ".py:" not in source:
        load_file(source)
        return
    found = load_object(source, _is_any, "a term, a method, a score or a task")
    from .analysis.scores import Score, use_score
    from .core.terms import Term, parse_terms
    from .methods.registry import find_method, is_method
    from .tasks.registered import use_task

    if isinstance(found, Term):
        parse_terms(source)
    elif isinstance(found, Score):
        use_score(source)
    elif is_method(found):
        find_method(source)
    else:
        use_task(source)


def _is_any(found: Any) -> bool:
    from .analysis.scores import Score
    from .core.terms import Term
    from .methods.registry import is_method
    from .tasks.registered import is_task

    return isinstance(found, (Term, Score)) or is_method(found) or is_task(found)
