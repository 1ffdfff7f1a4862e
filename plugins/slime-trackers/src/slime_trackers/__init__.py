"""TensorBoard and Weights & Biases trackers for slime."""

__version__ = "0.1.0"
