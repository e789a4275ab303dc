"""The numbers of a loader for dashboards; docs/stats.md says what each of them is.

`prometheus` registers a loader with prometheus-client; `scalars` makes a flat dict of `loader.stats()`, for W&B and
TensorBoard. The rest are the types of what `loader.stats()` gives.

    heartbeat  signs of life of a worker
    clock      where the time of a thread goes
    stats      the keys, units and meanings of `loader.stats()`
    exporting  the same for dashboards
"""

from streampack.metrics.exporting import Collector, prometheus, scalars
from streampack.metrics.stats import Seconds, SourceStats, Stats

__all__ = ["Collector", "Seconds", "SourceStats", "Stats", "prometheus", "scalars"]
