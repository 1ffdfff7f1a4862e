"""Workers behind handles: in this process, or, for runs with more than one training rank or with an engine of several
processes, in Ray actors.

handles.py        `LocalHandle`: a worker in this process; waiting, and saying what for
actor_handles.py  `ActorHandle`: the driver's side of workers in Ray actors, with the interface of `LocalHandle`
actor.py          the Ray actor around a worker
machines.py       whether the other machines of a run answer
layout.py         what a run asks for, and whether a cluster has room for it; pure
placement_picture.py  which process is on which GPU, drawn; pure
connect.py        joins or starts a Ray cluster
slots.py          where an engine may start servers of its own
hardware.py       which GPU computes, also without torch
failures.py       errors on their way from a worker to the driver
tensors.py        tensors on their way through Ray's object store

Only connect.py, actor.py, actor_handles.py, slots.py and tensors.py import ray, and they are not imported before a run needs
them.
"""
