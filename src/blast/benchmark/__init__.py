"""Benchmark suites. A suite is one file of this folder with `measure(architecture, sparsity, block, seed, settings)`.

Its settings and their defaults are a class in `blast.benchmark.settings`. `measure` gets them as plain values, together
with `tokens`, `dtype` and `repeats`, and returns the entries of a record's `metrics`. An entry with `unfinished: True`
was not timed because the point ran out of time; the next run tries the point again.
"""
