"""The inference engine `--rollout-engine sglang`: SGLang servers behind SGLang's router.

arguments.py   slime's own options
options.py     the options of the installed SGLang and router, passed through
process.py     a child process that never outlives its parent
guard.py       the program that sees to that
server.py      one server: its command, start and end
remote.py      one in a Ray actor, on any machine of a cluster
router.py      the router: its command, start, end and workers
control.py     what a server is asked besides generating
fleet.py       all servers and the router: started, watched, restarted
answers.py     `generate` in the words of SGLang, and back
engine.py      the engine that rollouts call
snapshot.py    the newest weights on disk, for servers that start anew
weights.py     takes a new version of the weights to all servers
transports.py  the ways on which weights travel
"""

__version__ = "0.1.0"
