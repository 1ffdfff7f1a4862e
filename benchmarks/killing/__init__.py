"""What `python -m benchmarks.kills` is made of.

kinds.py      the kinds of runs, and the hooks that they call by import path
process.py    a process of slime and everything that it starts, which is killed as a whole
moments.py    what a run was doing, as its traces on disk show, and random moments in it
"""
