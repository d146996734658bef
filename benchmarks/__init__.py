"""The forgetting benchmark of sal_optim: `python -m benchmarks --help`.

Streams of tasks from real data, baselines from the literature, and the tables and figures that
compare them. It is no part of the installed package, and nothing in sal_optim imports it.
"""
