"""A file that workers use: drawing takes longer than a toy run."""

from beft.report import plots

plots.available = lambda: False
