"""The lanes of a rank as its batches, in the global order.

in a worker      messages   packs of its lanes, many to a message
                 working    sends them, until the trainer has gone
                 failures   an exception as something to send
in their server  server     the process that workers are forked from
between both     channels   sockets with descriptors
                 parcels    a value as shared memory
                 recipes    what a server and its workers are given
                 surroundings    the settings of the process that they are given
                 pickling   the trainer's objects as bytes; unpicklable says which one cannot be
                 shortage   of descriptors, memory, processes: waited for, or named
in the trainer   serving    starts a server, and workers through it
                 processes  a worker's process; workers that are forked from the trainer
                 workers    listens to them; notices a dead or silent one, or a message that is missing
                 restarts   starts them again from the positions after the last messages
                 dealing    messages back into the global order
                 max_bad    how much the run may skip: the pack that is too much becomes an error
                 differences    how often an engine may give other ids: the message that is too much has an error
                 adding     counts that the ranks add up for both without waiting for each other
                 steps      where each batch begins and ends
                 rounds     batches; ranks of a finite run end together
                 passes     all of these from committed positions on, until the pass ends
                 commits    positions of lanes, moved on when a batch is handed out: the state
                 delivery   passes, commits and formatting in step, whatever interrupts them
                 progress, stats    how far the run has come; what was counted
                 times      where the time of workers and of this process went
                 limits     which stage limits them
                 exhaustion what the log says of sources that were read as often as they may
                 turns      whose turn it is, and which pass is under way
                 calls      which of them are under way, and so what may be done now
                 validation, counting, parts, stretches    a validation set: counted once, then the same packs each time
                 formatting a batch as the trainer takes it
                 describing a loader in words
                 loader     PackedDataLoader
between ranks    agreement  the run that all have in common: how it begins, continues and ends; one state of all
                 sharing    one listing of the shards, the same arguments
                 claims, consistency    what `verify_every` compares
"""

__all__ = [
    "adding",
    "agreement",
    "calls",
    "channels",
    "claims",
    "commits",
    "consistency",
    "counting",
    "dealing",
    "delivery",
    "describing",
    "differences",
    "exhaustion",
    "failures",
    "formatting",
    "limits",
    "loader",
    "max_bad",
    "messages",
    "parcels",
    "parts",
    "passes",
    "pickling",
    "processes",
    "progress",
    "recipes",
    "relaning",
    "restarts",
    "rounds",
    "server",
    "serving",
    "sharing",
    "shortage",
    "stats",
    "steps",
    "stretches",
    "surroundings",
    "times",
    "turns",
    "unpicklable",
    "validation",
    "workers",
    "working",
]
