"""What a plugin author implements, one file a trade. Each file has the contract, the types that it speaks of, the check of
what comes back, and the row of each of its kinds in the table `kinds.KINDS`.

    options.py        groups of options; which options a component reads
    checking.py       what a component says of a run before it starts
    data.py           converters, data sources, buffer filters, loss masks
    rollout.py        rollout functions and the hooks around them; work that goes on in the background
    rollout_outputs.py  rollouts in slime's forms, read as `RolloutOutput`
    engine.py         inference engines, and the further abilities that they may have
    reward.py         rewards, and what becomes of them before advantages are taken
    advantage.py      advantage estimators
    loss.py           losses, and weights for tokens that another distribution sampled
    precision.py      precision recipes: products in FP8, and what must agree with them
    checkpoint_format.py  quantised checkpoints: which weights are in low precision, and how they lie there
    train_backend.py  train backends, the batch that they are given, and their further abilities
    tracker.py        where metrics go
    command.py        subcommands of `slime`
    checkpoint_conversion.py  conversions of checkpoints, subcommands of `slime convert`
    memory.py         what a train backend or an engine will hold in memory
    kind.py           `Kind`: one row of the table, with what happens when a component of it fails
    kinds.py          `KINDS`: the table, collected from all files of this folder
    results.py        what the checks of results share

A component is compared with its contract when it is selected, and what it returns whenever it is called. The functions
and classes that are contracts are never called or subclassed: people read them to write their own. A component function
is given the contract's parameters by position, and those that have a default by their names; it may add parameters that have
defaults.

Nothing here imports torch; the tensors of a contract bring it along.
"""
