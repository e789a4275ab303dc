"""One lane, from a position on: all stages of the pipeline in a row, inside a memory budget.

pool -> stream -> reader -> pieces      samples of a piece of a shard; read again where it breaks
|          |  `-> fetching    the bytes of the pieces that are read next, asked for at once
|          |----> records     their records, as columns
|          |----> windows     the same in the order of a shuffle
|          `----> batches     the documents that these become, as columns
|-> ahead                     what is read and not used yet
|   `-> tokenizing            documents as token ids
|-> skipping                  what cannot be read: raise, or skip and remember
|-> (packer)                  packs
|-> unpassed                  which documents the packer holds
|-> liveness                  whether an endless lane will ever give a pack
`-> position                  where the lane continues after each pack

run                       what the lanes of a run read: sources and stages
digest                    of a pack: its global number and its content
budget                    how much memory lanes need, known before the run
arrival                   whether a lane that is left before its end would have arrived there
"""

__all__ = [
    "ahead",
    "arrival",
    "batches",
    "budget",
    "digest",
    "fetching",
    "held_out",
    "liveness",
    "pieces",
    "pipeline",
    "pool",
    "position",
    "provenance",
    "reader",
    "records",
    "recutting",
    "run",
    "skipping",
    "stream",
    "tokenizing",
    "unpassed",
    "windows",
]
