"""TensorBoard and Weights & Biases trackers for slime."""
