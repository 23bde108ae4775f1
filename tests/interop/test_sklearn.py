"""The scikit-learn estimators: their API, equality with `beft.train`, labels, searches in processes, and bad input."""

import dataclasses
import inspect
import json
import pickle
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from joblib import cpu_count, parallel_config
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.exceptions import DataConversionWarning, NotFittedError
from sklearn.metrics import accuracy_score
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import estimator_checks as checks
from sklearn.utils import get_tags
from sklearn.utils.validation import check_is_fitted, has_fit_parameter

import beft
import real
from beft.errors import BeftError, DataError, RecipeError, StoreError, TermError
from beft.interop import shared_base as shared
from beft.interop.sklearn import BeftClassifier, BeftRegressor, InputError, ParameterError, UnfittedError, forget_bases
from beft.report import plots
from beft.tasks.table import read_rows
from beft.tasks.task import Task
from cli.conftest import call
from toys import COLOURS, FAST, adapter_files, fast, save_base, texts, toy_task, write_csv

X = [text for text, _ in texts(36, 1)]
COLOUR = [colour for _, colour in texts(36, 1)]
Y = [COLOURS[colour] for colour in COLOUR]
LENGTH = [len(text.split()) / 2 for text in X]
NEW = [text for text, _ in texts(12, 2)]
QUICK: dict[str, Any] = {**FAST, "epochs": 1, "selection": "none", "dtype": "fp32"}
Make = Callable[..., Any]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("sklearn") / "tiny-bert")


@pytest.fixture(autouse=True, scope="module")
def _no_base_stays() -> Iterator[None]:
    yield
    forget_bases()


@pytest.fixture
def classifier(base: Path) -> Make:
    """Makes a classifier whose fit takes a fraction of a second."""
    return lambda **params: BeftClassifier(str(base), **{**QUICK, **params})


@pytest.fixture
def regressor(base: Path) -> Make:
    return lambda **params: BeftRegressor(str(base), **{**QUICK, **params})


@pytest.fixture(params=["classifier", "regressor"])
def make(request: pytest.FixtureRequest) -> Make:
    """Makes either kind; `labels_for` gives labels of X for it."""
    return request.getfixturevalue(request.param)


def labels_for(estimator: Any) -> list[Any]:
    return Y if is_classifier(estimator) else LENGTH


def methods(estimator: Any) -> list[str]:
    return ["predict", "predict_proba", "decision_function"] if is_classifier(estimator) else ["predict"]


class TestApi:
    @pytest.mark.parametrize(
        "check",
        [
            checks.check_estimator_cloneable,
            checks.check_estimator_tags_renamed,
            checks.check_valid_tag_types,
            checks.check_estimator_repr,
            checks.check_no_attributes_set_in_init,
            checks.check_do_not_raise_errors_in_init_or_set_params,
            checks.check_mixin_order,
            checks.check_parameters_default_constructible,
            checks.check_get_params_invariance,
            checks.check_set_params,
        ],
        ids=lambda check: check.__name__,
    )
    @pytest.mark.parametrize("kind", [BeftClassifier, BeftRegressor])
    def test_scikit_learns_own_checks_that_need_no_numbers(self, kind: type, check: Callable[..., None]) -> None:
        check(kind.__name__, kind())

    def test_tags_say_texts_in_one_dimension_and_a_target(self) -> None:
        tags = get_tags(BeftClassifier())
        assert tags.input_tags.string
        assert tags.input_tags.one_d_array
        assert not tags.input_tags.two_d_array
        assert tags.target_tags.required
        assert is_classifier(BeftClassifier())
        assert is_regressor(BeftRegressor())

    @pytest.mark.parametrize("kind", [BeftClassifier, BeftRegressor])
    def test_parameters_are_those_of_the_recipe_with_its_defaults(self, kind: type) -> None:
        recipe = {each.name: each.default for each in dataclasses.fields(beft.Recipe)}
        recipe["lr"] = None  # the recipe's own, whichever it is for the texts at hand
        shared_names = set(kind().get_params()) & set(recipe)
        assert len(shared_names) > 15
        assert {name: kind().get_params()[name] for name in shared_names} == {
            name: recipe[name] for name in shared_names
        }
        assert kind().random_state == recipe["seed"]
        assert ("class_weight" in kind().get_params()) == is_classifier(kind())

    def test_fit_takes_texts_and_labels_and_no_weights_and_gives_itself(self, make: Make) -> None:
        estimator = make()
        assert list(inspect.signature(estimator.fit).parameters)[:2] == ["X", "y"]
        assert not has_fit_parameter(estimator, "sample_weight")
        assert estimator.fit(X, labels_for(estimator), sample_weight=None) is estimator
        assert 0 < estimator.score(X, labels_for(estimator), sample_weight=np.ones(len(X))) <= 1 or is_regressor(
            estimator
        )

    def test_fit_leaves_parameters_alone_and_adds_names_that_end_in_an_underscore(self, make: Make) -> None:
        estimator = make(random_state=np.random.RandomState(3))
        before = {name: (value, id(value)) for name, value in vars(estimator).items()}
        estimator.fit(X, labels_for(estimator))
        added = set(vars(estimator)) - set(before)
        assert {name: (value, id(value)) for name, value in vars(estimator).items() if name in before} == before
        assert added >= {"adapter_", "base_", "history_", "best_epoch_"}
        assert all(name.endswith("_") for name in added)
        assert not hasattr(estimator, "n_features_in_")

    def test_predicting_changes_nothing(self, make: Make) -> None:
        estimator = make().fit(X, labels_for(make()))
        before = pickle.dumps(vars(estimator))
        for method in methods(estimator):
            getattr(estimator, method)(NEW)
        assert pickle.dumps(vars(estimator)) == before

    def test_before_fit_every_method_raises_not_fitted(self, make: Make, tmp_path: Path) -> None:
        estimator = make()
        with pytest.raises(NotFittedError):
            check_is_fitted(estimator)
        for method in methods(estimator):
            with pytest.raises(UnfittedError, match=f"{method}: expected a fitted estimator") as caught:
                getattr(estimator, method)(NEW)
            assert isinstance(caught.value, (NotFittedError, BeftError))
        with pytest.raises(NotFittedError):
            estimator.save(tmp_path / "out")
        check_is_fitted(estimator.fit(X, labels_for(estimator)))

    def test_rows_do_not_depend_on_the_rows_beside_them(self, make: Make) -> None:
        estimator = make().fit(X, labels_for(make()))
        order = np.random.RandomState(0).permutation(len(NEW))
        for method in methods(estimator)[1:] or ["predict"]:
            whole = getattr(estimator, method)(NEW)
            alone = np.concatenate([getattr(estimator, method)([text]) for text in NEW])
            assert_allclose(alone, whole, atol=1e-5)
            assert_allclose(getattr(estimator, method)([NEW[i] for i in order]), whole[order], atol=1e-5)

    def test_probabilities_decisions_and_predictions_agree(self, classifier: Make) -> None:
        three = classifier().fit(X, Y)
        two = classifier().fit(X, [label == "red" for label in Y])
        p, d = three.predict_proba(NEW), three.decision_function(NEW)
        assert p.shape == d.shape == (12, 3)
        assert_allclose(p.sum(1), 1)
        assert_array_equal(three.classes_[p.argmax(1)], three.predict(NEW))
        assert_allclose(np.log(p) - np.log(p[:, :1]), d - d[:, :1], atol=1e-9)
        p, d = two.predict_proba(NEW), two.decision_function(NEW)
        assert (p.shape, d.shape) == ((12, 2), (12,))
        assert_allclose(d, np.log(p[:, 1] / p[:, 0]), atol=1e-9)
        assert_array_equal(two.predict(NEW), d > 0)

    def test_no_texts_give_no_predictions(self, make: Make) -> None:
        estimator = make().fit(X, labels_for(make()))
        assert [len(getattr(estimator, method)([])) for method in methods(estimator)] == [0] * len(methods(estimator))


class TestTraining:
    """Against `beft.train`, which keeps a folder and shares nothing."""

    @pytest.mark.parametrize(
        ("regression", "pairs", "changes"),
        [
            (False, False, {"selection": "dev"}),
            (False, True, {"selection": "none", "terms": "value+key", "layers": "last:1"}),
            (False, False, {"head": "model", "selection": "none"}),
            (False, False, {"head_start": "regression", "selection": "dev", "dropout": 0.2}),
            (True, False, {"selection": "dev", "seed": 7}),
        ],
    )
    def test_adapters_and_predictions_are_those_of_train(
        self, base: Path, tmp_path: Path, regression: bool, pairs: bool, changes: dict[str, Any]
    ) -> None:
        task: Task = toy_task(pairs=pairs, regression=regression)
        order = sorted(range(3), key=COLOURS.__getitem__)  # scikit-learn sorts its classes
        if not regression:
            for rows in (task.train, *task.evaluation.values()):
                rows[:] = [dataclasses.replace(row, label=order.index(int(row.label or 0))) for row in rows]
            task.labels = tuple(sorted(COLOURS))
        expected = beft.train(str(base), task, fast(**changes), tmp_path / "out", dtype="fp32", with_baselines=False)

        def read(rows: list[Any]) -> list[Any]:
            return [row.texts if pairs else row.texts[0] for row in rows]

        params = {**FAST, **changes, "random_state": changes.get("seed", 0), "dtype": "fp32"}
        params.pop("seed", None)
        y = [row.label if task.labels is None else task.labels[int(row.label or 0)] for row in task.train]
        estimator = (BeftRegressor if regression else BeftClassifier)(str(base), **params).fit(read(task.train), y)
        tensors = {name: data for name, data in estimator.adapter_.items() if name.endswith(".safetensors")}
        assert tensors == adapter_files(tmp_path / "out")
        assert estimator.best_epoch_ == expected.metrics["best_epoch"]
        (part,) = task.evaluation.values()
        if regression:
            assert_allclose(estimator.predict(read(part)), expected.predictions["evaluation"], atol=1e-6)
        else:
            assert_allclose(estimator.predict_proba(read(part)), expected.probabilities["evaluation"], atol=1e-6)

    def test_it_learns_classes_and_numbers(self, classifier: Make, regressor: Make) -> None:
        rows = texts(90, 1)
        held = texts(60, 2)
        words = [text for text, _ in rows]
        fitted = classifier(epochs=14, lr=0.02, selection="none").fit(words, [colour for _, colour in rows])
        assert fitted.score([text for text, _ in held], [colour for _, colour in held]) > 0.6  # one in three by chance
        numbers = regressor(epochs=14, lr=0.02, selection="none").fit(
            words, [len(text.split()) * 100 for text in words]
        )
        assert numbers.score([text for text, _ in held], [len(text.split()) * 100 for text, _ in held]) > 0.5  # R2

    def test_fitting_again_and_fitting_a_clone_give_the_same_bytes(self, make: Make) -> None:
        estimator = make()
        y = labels_for(estimator)
        first = dict(estimator.fit(X, y).adapter_)
        assert estimator.fit(X, y).adapter_ == first
        assert clone(estimator).fit(X, y).adapter_ == first
        assert clone(estimator).set_params(random_state=1).fit(X, y).adapter_ != first

    def test_random_states(self, classifier: Make) -> None:
        a, b = (classifier(random_state=np.random.RandomState(5)).fit(X, Y) for _ in range(2))
        assert a.adapter_ == b.adapter_
        assert a.fit(X, Y).adapter_ != b.adapter_  # the generator has moved on
        assert classifier(random_state=np.int64(4)).fit(X, Y).adapter_ == classifier(random_state=4).fit(X, Y).adapter_
        seeds = {
            json.loads(classifier(random_state=None).fit(X, Y).adapter_["beft.json"])["task"]["recipe"]["seed"]
            for _ in "ab"
        }
        assert len(seeds) == 2

    def test_torchs_random_numbers_are_left_as_they_were(self, classifier: Make) -> None:
        torch.manual_seed(11)
        expected = torch.rand(3)
        torch.manual_seed(11)
        classifier(dropout=0.3, head="model").fit(X, Y)
        assert torch.equal(torch.rand(3), expected)

    def test_numpys_numbers_as_a_search_draws_them(self, classifier: Make) -> None:
        drawn = classifier(lr=np.float64(0.01), epochs=np.int64(1), batch_size=np.int32(8), max_length=np.int64(32))
        assert drawn.fit(X, Y).adapter_ == classifier().fit(X, Y).adapter_

    def test_texts_cut_short_are_counted_in_a_warning(self, classifier: Make) -> None:
        with pytest.warns(UserWarning, match=r"BeftClassifier: 1 of 36 texts were cut \(max_length sets the limit\)"):
            classifier().fit([*X[:-1], "red " * 50], Y)
        with pytest.warns(UserWarning, match=r"BeftClassifier: 37 of 72 texts were cut"):
            classifier(pairs="apart").fit([*((text, "red " * 50) for text in X[:-1]), ("red " * 50,) * 2], Y)


class TestSharedBase:
    @pytest.fixture(autouse=True)
    def _empty(self) -> None:
        forget_bases()

    @pytest.fixture
    def loads(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """Grows with every base that is loaded."""
        names: list[str] = []
        real_load = shared.load_base

        def load(name: str, *args: Any, **options: Any) -> Any:
            names.append(name)
            return real_load(name, *args, **options)

        monkeypatch.setattr(shared, "load_base", load)
        return names

    def test_it_is_loaded_once_for_fits_predictions_and_both_estimators(
        self, classifier: Make, regressor: Make, loads: list[str]
    ) -> None:
        classifier().fit(X, Y).predict(NEW)
        classifier(terms="query", lr=0.1).fit(X, [label == "red" for label in Y]).predict(NEW)
        regressor().fit(X, LENGTH).predict(NEW)
        assert len(loads) == 1
        forget_bases()
        classifier().fit(X, Y)
        assert len(loads) == 2

    def test_no_fit_leaves_a_trace_for_the_next(self, classifier: Make, regressor: Make) -> None:
        first = classifier().fit(X, Y)
        kept = first.predict_proba(NEW)
        classifier(dropout=0.5, lr=1.0).fit(X, Y)
        classifier(terms="all", lr=1.0, class_weight="balanced").fit(X, Y)
        classifier(head="model", lr=1.0).fit(X, Y)
        with pytest.raises(BeftError):
            classifier(layers="77").fit(X, Y)
        regressor(lr=1.0).fit(X, LENGTH)
        assert_array_equal(first.predict_proba(NEW), kept)
        assert classifier().fit(X, Y).adapter_ == first.adapter_
        for entry in shared._BASES.values():
            assert entry.bank.names == []
            assert not entry.base.model.training

    def test_dropout_of_a_recipe_does_not_stay_in_the_model(self, classifier: Make) -> None:
        plain = classifier(dropout="model").fit(X, Y)
        assert classifier(dropout=0.5).fit(X, Y).adapter_ != plain.adapter_
        assert classifier(dropout="model").fit(X, Y).adapter_ == plain.adapter_

    def test_only_so_many_are_kept(self, base: Path, loads: list[str], tmp_path: Path) -> None:
        bases = [base, *(save_base(tmp_path / f"base{number}", seed=number) for number in range(shared.KEPT))]
        for each in (*bases, base):
            BeftClassifier(str(each), **QUICK).fit(X, Y)
            assert len(shared._BASES) <= shared.KEPT
        assert loads == [str(each) for each in (*bases, base)]

    def test_a_model_written_anew_is_another(self, tmp_path: Path) -> None:
        folder = save_base(tmp_path / "base")
        fitted = BeftClassifier(str(folder), **QUICK).fit(X, Y)
        save_base(folder, seed=3)
        with pytest.raises(StoreError, match="found other weights of the same shape"):
            fitted.predict(NEW)
        assert fitted.fit(X, Y).score(X, Y) > 0

    def test_threads_take_turns(self, classifier: Make) -> None:
        alone = cross_val_score(classifier(), X, Y, cv=4)
        with parallel_config("threading", n_jobs=4):
            assert_array_equal(cross_val_score(classifier(), X, Y, cv=4), alone)


class TestLabels:
    @pytest.mark.parametrize(
        "y",
        [
            Y,
            np.array(Y),
            np.array(Y, dtype=object),
            pd.Series(Y),
            pd.Series(Y, dtype="category"),
            COLOUR,
            np.array(COLOUR, dtype=np.int32),
            [10 * colour - 7 for colour in COLOUR],
            pd.Series(COLOUR, dtype="Int64"),
            [colour == 1 for colour in COLOUR],
            np.array(COLOUR, dtype=float),
            [str(colour) for colour in COLOUR],
        ],
        ids=lambda y: f"{type(y).__name__}-{getattr(y, 'dtype', type(y[0]).__name__)}",
    )
    def test_they_come_back_as_they_were(self, classifier: Make, y: Any, tmp_path: Path) -> None:
        fitted = classifier().fit(X, y)
        values = np.asarray(list(y))
        assert_array_equal(fitted.classes_, np.unique(values))
        assert isinstance(fitted.classes_.tolist()[0], type(values.tolist()[0]))
        assert set(fitted.predict(NEW).tolist()) <= set(values.tolist())
        assert fitted.score(X, y) == accuracy_score(list(y), fitted.predict(X))
        again = BeftClassifier.load(fitted.save(tmp_path / "out"))
        assert again.classes_.tolist() == fitted.classes_.tolist()
        assert_array_equal(again.predict(NEW), fitted.predict(NEW))

    def test_the_column_of_a_table_warns_as_scikit_learn_does(self, make: Make) -> None:
        estimator = make()
        y = np.array(labels_for(estimator))
        with pytest.warns(DataConversionWarning):
            column = make().fit(X, y[:, None])
        assert column.adapter_ == estimator.fit(X, y).adapter_

    def test_balanced_classes(self, classifier: Make) -> None:
        keep = [i for i, label in enumerate(Y) if label != "red" or i < 6]
        rows, y = [X[i] for i in keep], [Y[i] for i in keep]
        plain, balanced = (classifier(class_weight=each, epochs=4).fit(rows, y) for each in (None, "balanced"))
        column = plain.classes_.tolist().index("red")
        assert balanced.predict_proba(NEW)[:, column].mean() > plain.predict_proba(NEW)[:, column].mean()


class TestInputs:
    @pytest.mark.parametrize(
        "kind",
        [
            tuple,
            np.array,
            pd.Series,
            lambda x: np.array(x, dtype=object),
            lambda x: pd.Series(x, index=range(9, 45)),
            lambda x: np.array(x)[:, None],
            lambda x: pd.DataFrame({"text": x}),
        ],
    )
    def test_every_collection_of_texts(self, classifier: Make, kind: Callable[..., Any]) -> None:
        given = kind(X)
        fitted = classifier().fit(given, Y)
        assert fitted.adapter_ == classifier().fit(X, Y).adapter_
        assert_array_equal(
            fitted.predict(given), fitted.predict(X) if not hasattr(given, "columns") else fitted.predict(np.array(X))
        )

    def test_pairs_as_tuples_arrays_and_frames(self, classifier: Make) -> None:
        pairs = [(text, f"good {text}") for text in X]
        frame = pd.DataFrame(pairs, columns=["premise", "claim"])
        a, b, c = (classifier().fit(each, Y) for each in (pairs, np.array(pairs), frame))
        assert a.adapter_ == b.adapter_
        assert_array_equal(a.predict_proba(pairs), c.predict_proba(frame))
        assert abs(a.predict_proba(pairs) - a.predict_proba([(second, first) for first, second in pairs])).max() > 1e-6
        assert c.feature_names_in_.tolist() == ["premise", "claim"]
        assert json.loads(c.adapter_["beft.json"])["task"]["fields"] == ["premise", "claim"]
        with pytest.raises(InputError, match=r"expected the columns of fit \(premise, claim\), found claim, premise"):
            c.predict(frame[["claim", "premise"]])
        with pytest.raises(InputError, match="expected 2 texts, as in fit"):
            a.predict(X)
        assert not hasattr(c.fit(pairs, Y), "feature_names_in_")

    @pytest.mark.parametrize(
        ("bad", "words"),
        [
            ("red", "expected a list, array or Series of texts, found one text"),
            (None, "found NoneType"),
            ({"text": X}, "found dict"),
            (iter(X), "found list_iterator"),
            ([], "expected at least one text, found none"),
            ([*X[:-1], 3], "X, row 35: expected a text, or a pair of texts, found 3"),
            ([*X[:-1], None], "X, row 35: .* found None"),
            (pd.Series([*X[:-1], None]), "X, row 35: .* found nan"),
            ([*X[:-1], b"red"], "X, row 35"),
            ([*X[:-1], ("red", "red")], "X, row 35: expected a text, found"),
            ([(text,) * 3 for text in X], "X, row 0: expected a text, or a pair of texts"),
            (np.zeros((36, 2)), "X, row 0: .* found"),
            (np.zeros((36, 2, 2)), "one or two dimensions, found 3"),
            (np.array("red"), "X"),
            ([*X[:-1], "  "], "BeftClassifier, row 35: expected text in text, found an empty text"),
        ],
    )
    def test_what_are_no_texts(self, classifier: Make, bad: Any, words: str) -> None:
        with pytest.raises(InputError, match=words) as caught:
            classifier().fit(bad, Y)
        assert isinstance(caught.value, ValueError)
        assert isinstance(caught.value, DataError)

    @pytest.mark.parametrize(
        ("y", "words"),
        [
            (None, "requires y to be passed, but the target y is None"),
            (Y[:-1], r"expected as many labels as texts \(36\), found 35"),
            (["red"] * 36, "at least two classes, found one class only"),
            ([*Y[:-1], None], "y, row 35: expected a label, found a missing one"),
            ([*Y[:-1], float("nan")], "y, row 35"),
            (pd.Series([*Y[:-1], None]), "y, row 35"),
            (np.array([*COLOUR[:-1], np.nan]), "y, row 35"),
            (pd.Series([*COLOUR[:-1], None], dtype="Int64"), "y, row 35"),
            ([*Y[:-1], 3], "labels of one type, found texts and numbers"),
            (LENGTH, "Unknown label type: continuous"),
            (np.eye(36, 3), "y should be a 1d array"),
            ("red", "expected a list, array or Series of labels"),
        ],
    )
    def test_what_are_no_classes(self, classifier: Make, y: Any, words: str) -> None:
        with pytest.raises(InputError, match=words):
            classifier().fit(X, y)

    @pytest.mark.parametrize(
        ("y", "words"),
        [
            (None, "requires y to be passed"),
            ([1.0] * 36, "different numbers, found one value only"),
            ([*LENGTH[:-1], float("nan")], "y, row 35: expected a label, found a missing one"),
            ([*LENGTH[:-1], float("inf")], "y, row 35: expected a finite number, found inf"),
            (Y, "could not convert string to float"),
            (np.eye(36, 2), "y should be a 1d array"),
            (LENGTH[:3], r"expected as many labels as texts \(36\), found 3"),
        ],
    )
    def test_what_are_no_numbers(self, regressor: Make, y: Any, words: str) -> None:
        with pytest.raises(InputError, match=words):
            regressor().fit(X, y)

    @pytest.mark.parametrize(
        ("params", "words"),
        [
            ({"lr": -1}, r"lr = -1 \(expected a number above 0 and below 1000\)"),
            ({"lr": "high"}, "expected values of their types"),
            ({"selection": "evaluation"}, "fit is given no evaluation rows"),
            ({"terms": "valu"}, "Did you mean 'value'"),
            ({"class_weight": {"red": 2}}, "class_weight"),
            ({"random_state": "x"}, "cannot be used to seed"),
            ({"random_state": -1}, "seed = -1"),
            ({"device": "abacus"}, "device 'abacus'"),
            ({"dtype": "fp7"}, "dtype 'fp7'"),
        ],
    )
    def test_parameters_out_of_range_are_refused_by_fit(self, classifier: Make, params: Any, words: str) -> None:
        with pytest.raises(ParameterError, match=words) as caught:
            classifier(**params).fit(X, Y)
        assert isinstance(caught.value, ValueError)
        assert isinstance(caught.value, RecipeError)
        assert "terms" not in params or isinstance(caught.value.__cause__, TermError)

    def test_weights_of_rows_are_refused(self, make: Make) -> None:
        remedy = "Classes can be weighed: class_weight='balanced'" if is_classifier(make()) else "Leave it out"
        with pytest.raises(ParameterError, match=rf"fit\(sample_weight=...\): .*found sample_weight\. {remedy}"):
            make().fit(X, labels_for(make()), sample_weight=np.ones(36))

    def test_a_linear_head_on_an_encoder_decoder(self, tmp_path: Path) -> None:
        folder = save_base(tmp_path / "base", "t5")
        with pytest.raises(ParameterError, match="expected an encoder or a causal model, found an encoder-decoder"):
            BeftClassifier(str(folder), **QUICK).fit(X, Y)
        assert BeftClassifier(str(folder), **QUICK, head="model").fit(X, Y).predict(NEW)[0] in COLOURS

    def test_a_model_that_is_not_there(self) -> None:
        with pytest.raises(StoreError, match="no such folder"):
            BeftClassifier("/nowhere/at/all").fit(X, Y)


class TestSearch:
    def test_a_pipeline_in_cross_validation(self, classifier: Make) -> None:
        lower = FunctionTransformer(lambda rows: [row.lower() for row in rows])
        pipeline = make_pipeline(lower, classifier())
        loud = np.array([text.upper() for text in X])
        assert_array_equal(
            cross_val_score(pipeline, loud, Y, cv=3), cross_val_score(classifier(), np.array(X), Y, cv=3)
        )
        assert pipeline.fit(loud, Y).predict_proba(loud).shape == (36, 3)

    def test_a_grid_in_two_processes_finds_what_one_finds(
        self, classifier: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # which would tell the processes how many threads to take
            monkeypatch.delenv(name, raising=False)
        grid = {"lr": [0.02, 1e-5], "terms": ["value"]}

        def measure(estimator: BeftClassifier, rows: Any, y: Any) -> dict[str, float]:
            return {"accuracy": estimator.score(rows, y), "threads": float(torch.get_num_threads())}

        def search(jobs: int) -> GridSearchCV:
            found = GridSearchCV(classifier(epochs=6), grid, cv=2, n_jobs=jobs, scoring=measure, refit="accuracy")
            return found.fit(X, Y)

        one, two = search(1), search(2)
        for fold in ("split0", "split1"):
            assert_array_equal(two.cv_results_[f"{fold}_test_accuracy"], one.cv_results_[f"{fold}_test_accuracy"])
            share = max(1, cpu_count() // 2)
            assert (two.cv_results_[f"{fold}_test_threads"] <= share).all()  # not every core for each process
        assert two.best_params_ == one.best_params_
        assert two.best_estimator_.adapter_ == one.best_estimator_.adapter_

    def test_a_fitted_estimator_pickles_small_and_predicts_the_same(self, make: Make) -> None:
        estimator = make().fit(X, labels_for(make()))
        data = pickle.dumps(estimator)
        assert len(data) < 20_000
        forget_bases()
        again = pickle.loads(data)
        for method in methods(estimator):
            assert_array_equal(getattr(again, method)(NEW), getattr(estimator, method)(NEW))

    def test_changed_parameters_count_from_the_next_fit_on(self, classifier: Make, tmp_path: Path) -> None:
        fitted = classifier().fit(X, Y)
        before = fitted.predict_proba(NEW)
        fitted.set_params(model=str(tmp_path / "gone"), max_length=5, head="model", terms="query")
        assert_array_equal(fitted.predict_proba(NEW), before)


class TestFolders:
    @pytest.fixture(autouse=True)
    def _no_pictures(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(plots, "available", lambda: False)

    def test_beft_and_its_command_line_read_what_save_wrote(self, classifier: Make, tmp_path: Path) -> None:
        fitted = classifier().fit(pd.Series(X, name="body"), Y)
        folder = fitted.save(tmp_path / "out")
        loaded = beft.load(folder)
        assert loaded.predict(NEW) == fitted.predict(NEW).tolist()
        assert_array_equal(loaded.predict_proba(NEW), fitted.predict_proba(NEW))
        rows = write_csv(tmp_path / "new.csv", [(text, "?") for text in NEW], ("body", "label"))
        assert call("predict", folder, "--data", rows, "--out", tmp_path / "new.jsonl", "-q") == 0
        lines = [json.loads(line) for line in (tmp_path / "new.jsonl").read_text().splitlines()]
        assert [line["prediction"] for line in lines] == fitted.predict(NEW).tolist()

    def test_numbers_too(self, regressor: Make, tmp_path: Path) -> None:
        fitted = regressor().fit(X, LENGTH)
        folder = fitted.save(tmp_path / "out")
        assert beft.load(folder).predict(NEW) == fitted.predict(NEW).tolist()
        assert_array_equal(BeftRegressor.load(folder).predict(NEW), fitted.predict(NEW))

    def test_load_brings_the_parameters_to_train_again(self, classifier: Make, tmp_path: Path) -> None:
        fitted = classifier(
            terms="value+query",
            head_start="zero",
            head_penalty="none",
            pairs="joint",
            random_state=3,
            class_weight="balanced",
        ).fit(X, COLOUR)
        again = BeftClassifier.load(fitted.save(tmp_path / "out"), dtype="fp32")
        assert again.get_params() == fitted.get_params()
        assert clone(again).fit(X, COLOUR).adapter_ == fitted.adapter_

    def test_what_beft_train_wrote_loads(self, base: Path, tmp_path: Path) -> None:
        task = toy_task()
        result = beft.train(str(base), task, fast(lr=0.02), tmp_path / "out", dtype="fp32", with_baselines=False)
        loaded = BeftClassifier.load(tmp_path / "out")
        (part,) = task.evaluation.values()
        assert_allclose(
            loaded.predict_proba([row.texts[0] for row in part]), result.probabilities["evaluation"], atol=1e-6
        )
        assert tuple(loaded.classes_) == COLOURS
        assert (loaded.lr, loaded.max_length) == (0.02, 32)

    def test_the_base_may_lie_elsewhere(self, tmp_path: Path) -> None:
        folder = save_base(tmp_path / "here")
        fitted = BeftClassifier(str(folder), **QUICK).fit(X, Y)
        expected = fitted.predict(NEW)
        fitted.save(tmp_path / "out")
        folder.rename(tmp_path / "there")
        forget_bases()
        with pytest.raises(StoreError, match="no such folder"):
            BeftClassifier.load(tmp_path / "out").predict(NEW)
        moved = BeftClassifier.load(tmp_path / "out", model=str(tmp_path / "there"))
        assert_array_equal(moved.predict(NEW), expected)

    def test_refused(self, classifier: Make, tmp_path: Path) -> None:
        folder = classifier().fit(X, Y).save(tmp_path / "out")
        with pytest.raises(StoreError, match="expected a new or empty folder"):
            classifier().fit(X, Y).save(folder)
        with pytest.raises(StoreError, match=r"an adapter for numbers, found one for classes. Use BeftClassifier.load"):
            BeftRegressor.load(folder)
        with pytest.raises(ParameterError, match="Did you mean 'device'"):
            BeftClassifier.load(folder, devise="cpu")
        with pytest.raises(StoreError, match="no such folder"):
            BeftClassifier.load(tmp_path / "nowhere")
        weights = folder / "adapter_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
        with pytest.raises(StoreError, match="checksum differs"):
            BeftClassifier.load(folder).predict(NEW)
        weights.unlink()
        with pytest.raises(StoreError, match="expected a file"):
            BeftClassifier.load(folder)


def test_a_few_rows_of_real_questions_beat_the_majority() -> None:
    def rows(split: str, count: int) -> tuple[list[str], list[str]]:
        read = [row for _, row in islice(read_rows(real.data() / "trec" / f"{split}.csv"), count)]
        return [row["text"] for row in read], [row["label"] for row in read]

    train, (held, y) = rows("train", 64), rows("validation", 100)
    model = str(real.model("minilm-l6-uncased"))
    fitted = BeftClassifier(model, epochs=6, lr=5e-3, max_length=32, selection="none", dtype="fp32").fit(*train)
    majority = max(Counter(y).values()) / len(y)
    assert majority < 0.4
    assert fitted.score(held, y) > majority + 0.2  # four standard errors
