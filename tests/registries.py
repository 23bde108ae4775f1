"""What files of one's own added to beft, taken off again."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from beft import own_file
from beft.analysis import importance, scores
from beft.core import families, terms
from beft.methods import registry
from beft.tasks import registered

DICTS: tuple[dict[Any, Any], ...] = (
    terms.TERMS, terms.ALIASES, families._OWN_PATHS, importance.SCORES, scores._REGISTERED, registry._REGISTERED,
    registered._REGISTERED,
)  # fmt: skip


@contextmanager
def new_session() -> Iterator[None]:
    """Within it nothing from outside is known at first; behind it everything is as before."""
    before, lines, modules = [dict(each) for each in DICTS], list(families._OWN_LINES), own_modules()
    built_in = {name: term for name, term in terms.TERMS.items() if name in terms.BUILT_IN}
    try:
        forget(modules)
        families._OWN_LINES.clear()
        for each in (families._OWN_PATHS, scores._REGISTERED, registry._REGISTERED, registered._REGISTERED):
            each.clear()
        for name in [name for name in terms.TERMS if name not in built_in]:
            del terms.TERMS[name]
        for alias in [alias for alias, name in terms.ALIASES.items() if name not in built_in]:
            del terms.ALIASES[alias]
        for name in [name for name in importance.SCORES if name in before[4]]:
            del importance.SCORES[name]
        yield
    finally:
        forget(own_modules())
        sys.modules.update(modules)
        families._OWN_LINES[:] = lines
        for each, values in zip(DICTS, before, strict=True):
            each.clear()
            each.update(values)


def own_modules() -> dict[str, Any]:
    """Modules made of files of one's own."""
    return {name: module for name, module in sys.modules.items() if name.startswith(own_file.PREFIX)}


def forget(modules: dict[str, Any]) -> None:
    """As if these files had never been loaded."""
    for name in modules:
        del sys.modules[name]
    registered._made.cache_clear()
