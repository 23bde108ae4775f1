"""Studies: grids of runs as declarative files, run cell by cell from a cache, and the tables made of them.

`study` (the file and its faults), `methods` (names), `at_hand` (which models and tasks are here), `plan` (a study as
cells, with their hashes and hours), `cache`, `execute` (one cell), `runner`, `summary` (statistics), `publish` (files).
"""
