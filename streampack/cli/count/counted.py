"""What `streampack count` has found, for the terminal and for JSON."""

from dataclasses import dataclass
from typing import Any

from streampack.cli.count.tally import Tally


@dataclass(slots=True, kw_only=True)
class Counted:
    """A tally, and the shards and arguments that it is of."""

    num_shards: int
    """Of the source, in all parts."""
    num_estimated: int
    """Shards among them whose size is not known, and so estimated."""
    shard_bytes: int
    """Bytes of these shards, without what is held out."""
    field: str
    seq_len: int
    ends: list[str]
    """What each document is given: "BOS", "EOS"."""
    tally: Tally
    has_tokens: bool
    """Whether documents were measured in tokens (and packed), or in bytes."""
    seconds: float
    num_processes: int
    num_parts: int = 1

    def merge(self, other: "Counted") -> None:
        """Add what another part of the same shards holds."""
        self.tally.merge(other.tally)
        self.seconds += other.seconds
        self.num_parts += other.num_parts

    @property
    def unit(self) -> str:
        """What lengths are measured in."""
        return "token" if self.has_tokens else "byte"

    def as_json(self) -> dict[str, Any]:  # Any: JSON
        """All of it but the time, as plain values."""
        tally, seq_len = self.tally, self.seq_len
        lengths = tally.lengths
        return {
            "num_shards": self.num_shards,
            "shard_bytes": self.shard_bytes,
            "field": self.field,
            "samples": tally.samples,
            "documents": tally.documents,
            "text_bytes": tally.text_bytes,
            "tokens": tally.tokens if self.has_tokens else None,
            "lengths": {
                "unit": "tokens" if self.has_tokens else "bytes",
                "mean": lengths.mean,
                "median": lengths.percentile(0.5),
                "p90": lengths.percentile(0.9),
                "p99": lengths.percentile(0.99),
                "max": lengths.longest,
                "histogram": [
                    {"from": low, "to": high, "documents": documents, "units": units}
                    for low, high, documents, units in lengths.octaves()
                ],
            },
            "seq_len": seq_len,
            "packing": {
                packing.value: {
                    "packs": packed.packs(seq_len),
                    "efficiency": packed.efficiency(seq_len),
                    "padding": packed.padding(seq_len),
                    "split_documents": packed.split_documents,
                }
                for packing, packed in tally.packed.items()
            },
            "longest": [{"length": length, **location._asdict()} for length, location in tally.longest],
            "bad_records": tally.bad_records,
            "first_bad_records": [{"error": error, **location._asdict()} for location, error in tally.bad],
        }
