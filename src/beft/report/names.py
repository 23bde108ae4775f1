"""What people read in place of keys and of long lists."""

from collections.abc import Sequence

METRIC_NAMES = {
    "accuracy": "accuracy",
    "f1": "F1",
    "f1_macro": "macro F1",
    "matthews": "Matthews",
    "spearman": "Spearman",
    "pearson": "Pearson",
    "token_f1": "token F1",
    "em": "exact match",
}


def metric_name(metric: str) -> str:
    """A metric as tables, pictures and sentences call it; the key itself where it has no other name."""
    return METRIC_NAMES.get(metric, metric)


def several(names: Sequence[str], shown: int = 4) -> str:
    """The first of many names, and how many more there are."""
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")
