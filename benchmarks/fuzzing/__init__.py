"""The inputs of `python -m benchmarks.fuzz`, a file for each kind, with what reads them.

damage.py        hostile values, values that are changed somewhere, damaged bytes
rows.py          files of conversations, as runs, conversions and the preview read them
arrow.py         Arrow and Parquet files
samples.py       dumps of samples
recipes.py       recipes and command lines
checkpoints.py   checkpoints of a run, and the dump beside one
outcome.py       what becomes of an input, in a process of its own

Each kind has `attempt`, which makes an input in a folder and returns the function that reads it.
"""
