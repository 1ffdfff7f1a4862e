"""The inference engine `--rollout-engine sglang`: SGLang servers behind SGLang's router.

The engine, in the rollout worker's process:

    engine.py      `SGLangEngine`, the engine that rollout functions call
    requests.py    sends requests to the servers, repeats and aborts them
    answers.py     requests and responses in the format of SGLang's `/generate`
    images.py      images of prompts, in the form in which SGLang takes them
    placement.py   where the servers of a run are started
    fleet.py       all servers and the router: watched, and started again when they have died
    launcher.py    starts them and waits until they answer
    member.py      one server of the fleet
    memory.py      servers and trainer take turns in having the memory of the GPUs

Programs that it starts:

    server.py      one SGLang server: its command line, start and end
    remote.py      a server in a Ray actor, on any machine of a cluster
    router.py      the router: its command line, start, end and workers
    process.py     a child process that never outlives its parent
    guard.py       the program that sees to that

New weights, from the first training rank:

    weights.py     `SGLangWeightSender`, which takes a new version of the weights to all servers
    checkpoint_names.py  names of weights as checkpoints have them
    transports.py  how the weights travel: in HTTP requests, or broadcast in a process group
    keys.py        what servers and the router want to be shown with every request
    control.py     the calls of a server's HTTP interface that control it
    samples.py     compares some of the weights in a server with those that were sent
    snapshot.py    the newest weights on disk, for servers that are started again

Options:

    arguments.py   slime's own
    low_precision.py  which machine serves a quantised checkpoint
    options.py     those of the installed SGLang and router, passed through
    checks.py      what is seen of a run before it starts
    held.py        what a server will hold
    errors.py      `SGLangError`
    plugin.py      what slime finds
"""

__version__ = "0.1.0"
