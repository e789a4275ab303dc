"""Commands over many shards, in parts: each on a machine of its own, or all on a Ray cluster.

    streampack verify @m.jsonl                                all shards, here
    streampack verify @m.jsonl --part 3/32 --parts DIR        those of one part; what it found goes into DIR
    streampack merge DIR                                      what all parts found, as if it had been one machine
    streampack verify @m.jsonl --ray                          all parts, on a cluster, and merged

options: what was asked for --dispatch--> the work (work) of all shards, of a part, or of all parts on Ray (on_ray)
"""
