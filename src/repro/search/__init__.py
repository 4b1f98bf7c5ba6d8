"""Searching hyper-parameters with Optuna: the space, the loop, pruning and what came of it.

A search is a study whose runs are added trial by trial: its folder holds study.json and ordinary
run directories like any other, and besides them trials.db (Optuna's SQLite storage, the truth about
trials) and search.json (the result).
"""
