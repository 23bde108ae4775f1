"""Saved tiny bases."""

from bases import bert, llama

__all__ = ["bert", "llama"]
