"""TensorBoard and Weights & Biases trackers for slime.

tensorboard_tracker.py  `TensorboardTracker`
wandb_tracker.py        `WandbTracker`
arguments.py            the options
checks.py               what is seen of a run before it starts
plugin.py               what slime finds
"""

__version__ = "0.1.0"
