"""A loopback server that the real wandb client talks to: as much of W&B as the trackers' tests need.

Every answer was worked out from what the client sends. One user, no access control, everything in memory.
`server.py` speaks HTTP, `gql.py` walks GraphQL documents over Python objects, `queries.py`, `mutations.py`, `sweeps.py`
and `reports.py` are those objects with the wire's names, `state.py` is what they read and write. `faults.py` makes
requests fail.

To serve more of the client: run it, look at `unknown` and `refused` of `WandbServer`, and add what they name.
"""
