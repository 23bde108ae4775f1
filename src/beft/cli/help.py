"""Help screens without noise: flags without a type, types by plain names, no box for --help alone."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand, TyperGroup

from .options import MACHINE

SHOWN = {"<list[str]>": "<str>", "<int range>": "<int>", "<float range>": "<float>"}
"""Types that are shown more plainly; the rest stay as they are."""


def _plainer(parameters: list[Any], ctx: Any, panel: str | None) -> list[Any]:
    for each in parameters:
        if getattr(each, "is_flag", False):
            each.metavar = ""
        elif each.metavar is None and each.param_type_name == "option":
            shown = getattr(each, "display_type", lambda ctx: "")(ctx)  # older typers have plain names there
            each.metavar = SHOWN.get(str(shown))
        if each.name == "help" and panel:
            each.rich_help_panel = panel
    return parameters


class Command(TyperCommand):
    """A command whose --help stands with what concerns the screen."""

    def get_params(self, ctx: Any) -> list[Any]:
        """The parameters, as they are to be shown."""
        return _plainer(super().get_params(ctx), ctx, MACHINE)


class Group(TyperGroup):
    """The command that holds the others."""

    def get_params(self, ctx: Any) -> list[Any]:
        """The parameters, as they are to be shown."""
        return _plainer(super().get_params(ctx), ctx, None)
