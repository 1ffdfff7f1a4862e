"""Trackers for slime: TensorBoard, Weights & Biases, MLflow, trackio, SwanLab.

tensorboard_tracker.py  `TensorboardTracker`
wandb_tracker.py        `WandbTracker`
mlflow_tracker.py       `MlflowTracker`
trackio_tracker.py      `TrackioTracker`
swanlab_tracker.py      `SwanlabTracker`
logged.py               which steps a service has already
arguments.py            the options
checks.py               what is seen of a run before it starts
plugin.py               what slime finds
"""

__version__ = "0.1.0"
