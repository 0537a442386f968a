"""All timing. A suite is one file of this folder with `measure(architecture, sparsity, block, seed, settings)`.

Its settings and their defaults are a class in `blast.benchmark.settings`; `measure` gets them as plain values, with
`tokens`, `dtype` and `repeats`. It returns the entries of a record's `metrics`. An entry with `unfinished: True` was
not timed because the time was over: the next run tries its point again.
"""
