"""A ranking of terms says which of them the task did not move."""

from beft.report.importance import drawn, ranking_table

VALUES = {"projection": {"key": 0.99, "value": 0.4, "query": 0.1}, "fisher": {"key": 1e-20, "value": 2.0, "query": 1.0}}
NAMES = {"projection": "projection", "fisher": "Fisher"}
SYMBOLS = {"query": "b_q", "key": "b_k", "value": "b_v"}


def test_an_inert_term_stands_last_and_has_no_rank() -> None:
    table = ranking_table("title", VALUES, NAMES, SYMBOLS, inert=["key"])
    assert [[field.text for field in row] for row in table.rows] == [
        ["value b_v", "0.400 (1)", "2.000 (1)"],
        ["query b_q", "0.100 (2)", "1.000 (2)"],
        ["key b_k", "0.990 (inert)", "1.0e-20 (inert)"],
    ]
    assert [[field.mark for field in row] for row in table.rows][2] == ["", "missing", "missing"]
    assert ranking_table("title", VALUES, NAMES, SYMBOLS).rows[0][0].text == "key b_k"


def test_a_heatmap_leaves_inert_terms_out_but_of_fisher_scores() -> None:
    matrix = [[0.1, 0.9, 0.4], [0.2, 0.8, None]]
    terms = ["query", "key", "value"]
    assert drawn(matrix, terms, ["key"], "projection") == [[0.1, None, 0.4], [0.2, None, None]]
    assert drawn(matrix, terms, ["key"], "fisher_paper") == matrix
    assert drawn(matrix, terms, [], "projection") == matrix
