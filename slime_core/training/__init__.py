"""What happens to the samples of a rollout in training.

components.py  the components that training calls, chosen from the arguments
worker.py      drives the models of a training process through a rollout
initial_weights.py  which weights a new run starts from
model_facts.py  what is known of a model from its configuration, kept between commands
checkpoint_check.py  what can be seen of these before a model is loaded
served_weights.py  the weights as the engine takes them
columns.py     log-probs, values and advantages of the samples of a rollout
steps.py       how samples are cut into optimizer steps
batches.py     the batch of one step, and the weights of its tokens
adapters.py    which layers get a LoRA adapter
earlier.py     models with weights that the actor had
frozen.py      which parameters are trained
packing.py     how the samples of a step are packed, aligned to the ranks and distributed over them
work.py        how much work a sample is for a model
alike.py       whether functions of a person's own gave the same in every training rank
signals.py     between samples and the flat tensors of an advantage estimator
token_numbers.py  what a rollout was trained with, token by token, for those who watch a run
postprocess.py  what a hook changes of a rollout, and a file keeps of it, before it is trained
parity.py      a training rank that compares its backend with transformers
memory.py      how much memory training takes, as backends have it in common
precision.py   the precision recipe of a run, as train backends meet it
schedule.py    the learning rate of every step
profiling.py   traces of training
"""
