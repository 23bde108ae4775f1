"""`python -m beft`, for launchers that start a module."""

from .cli.main import run

run()
