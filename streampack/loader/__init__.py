"""The lanes of a rank as its batches, in the global order.

in a worker      messages   packs of its lanes, many to a message
                 parcels    a message as shared memory
in the trainer   workers    processes: started, listened to, ended; notices a dead or silent one
                 restarts   starts them again from the positions after the last messages
                 dealing    messages back into the global order
                 rounds     batches; ranks of a finite run end together
                 passes     all of these from committed positions on, until the pass ends
                 commits    positions of lanes, moved on when a batch is handed out: the state
                 max_bad    how much the run may skip, asked before a batch is committed
                 delivery   passes, commits and formatting in step, whatever interrupts them
                 formatting a batch as the trainer takes it
                 loader     PackedDataLoader
between ranks    agreement  one listing of the shards, the same arguments, one state of all
                 claims, consistency    what `verify_every` compares
"""

__all__ = [
    "agreement",
    "claims",
    "commits",
    "consistency",
    "dealing",
    "delivery",
    "formatting",
    "loader",
    "max_bad",
    "messages",
    "parcels",
    "passes",
    "restarts",
    "rounds",
    "stats",
    "workers",
]
