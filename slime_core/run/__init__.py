"""A run: planned, started, and what happens around each rollout.

components.py   all components of a run
plan.py         from arguments to a validated run
looks/          what is looked at for that
memory.py       what each process will hold in memory
memory_lines.py the same in words, for slime check
served_precision.py  a quantised --hf-checkpoint, and the precision that training computes in
launch.py       starts a planned run, and ends it cleanly
resume.py       which checkpoint a run goes on from, and whether it may
claims.py       folders that a run writes into belong to it alone
rollouts.py     a rollout as the driver has it, without its samples
run.py          what happens around each rollout
periods.py      after which rollouts it evaluates and saves
workers.py      makes the two workers of a run, in the process that calls
start.py        starts them in this process or on Ray
blueprint.py    what a worker process needs to make its worker
on_ray.py       places the workers on a cluster
weight_sync.py  hands the trainer's weights to the engine, and lets the two take turns with memory
evaluation.py   measures evaluation sets
scores.py       how sure the numbers of an evaluation are
evaluated_models.py  `slime eval`: which models, and with which options
model_evaluation.py  evaluates them without training
checkpoints.py  checkpoints on disk
saving.py       writes them
state_samples.py  the samples in a checkpoint's state
stored_run.py   arguments and checkpoints of a run on disk, for whoever uses its model afterwards
export.py       a Hugging Face folder of a checkpoint
parity.py       `slime check --parity`: drives a train backend and compares it with transformers
parity_rows.py  the rows of the run's data that it computes
requests.py     Ctrl-C, SIGTERM, SIGHUP and --save-trigger
summary.py      what a run says at its end
early_stopping.py  ends a run whose metric has stopped improving
best.py         the checkpoint of the best evaluation
tracking.py     where the numbers go
console.py      what a person sees of them while the run goes on
end.py          the last steps of a run
"""
