"""Runs with more than one training rank, or with an engine of several processes: the workers are Ray actors.

layout.py      what a run asks for, and whether a cluster has room for it; pure
connect.py     joins or starts a Ray cluster
blueprint.py   what a worker process needs to make its worker: plain data
actor.py       the Ray actor around a worker
handles.py     `ActorHandle`: the driver's side of it, with the interface of `LocalHandle`
failure.py     errors on their way from a worker to the driver
tensors.py     tensors on their way through Ray's object store
slots.py       where an engine may start servers of its own
start.py       places and starts all of them, and ends them

Nothing here is imported before a run needs it, and only connect.py, actor.py, handles.py, slots.py, tensors.py and
start.py import ray.
"""
