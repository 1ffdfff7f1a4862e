"""What happens to the samples of a rollout in training.

components.py  the components that training calls, chosen from the arguments
worker.py      log-probs, advantages and optimizer steps of a rollout
steps.py       how samples are cut into optimizer steps
batches.py     how the samples of a step become micro-batches: weights, packing, spreading over ranks
signals.py     between samples and flat tensors
schedule.py    the learning rate of every step
profiling.py   traces of training
"""
