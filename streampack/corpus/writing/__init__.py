"""Documents in other files in, tar shards and their manifest out; `write_shards` is its public function.

what the user named --inputs--> files --planning--> portions --reading, checking--> records --tars--> shards
with shuffle=True:  records --sorting--> runs --merging--> fewer runs --> the records of each shard, in a random order

Every portion is made by itself, by any process on any machine (`passes`, `request`), with the same bytes every time;
`folder` notes which are done, and `scratch` is where files are until they are complete.
"""

__all__ = [
    "checking",
    "folder",
    "inputs",
    "job",
    "lines",
    "merging",
    "notes",
    "passes",
    "planning",
    "public",
    "reading",
    "request",
    "rows",
    "runs",
    "scratch",
    "sorting",
    "tars",
]
