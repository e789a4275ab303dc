"""A training in processes of its own, which can be killed: `torchrun` with `streampack.examples.train`.

    with Training(folder, ranks=2, workers=2, ...) as training:     from the newest checkpoint in the folder
        for entry in training.steps():                              what rank 0 has logged
            ...; training.kill()

In:  a folder, a topology. Out: the example's checkpoints and logs in the folder.
Never: a process of a `Training` that is still there after its `with`.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from streampack.cli.console import plural
from streampack.cli.demo.attempts import Entry, read_log
from streampack.errors import StreampackError

_STALLED_S = 120.0
"""Without a new step for so long a training counts as failed."""
_POLL_S = 0.05


class Training:
    """`torchrun` with the example on one topology; it starts with the `with`, and has ended when that is left."""

    def __init__(
        self, folder: Path, *, ranks: int, workers: int, num_steps: int, checkpoint_every: int, seed: int
    ) -> None:
        self._folder = folder
        self._ranks = ranks
        self._arguments = [
            *("--steps", str(num_steps), "--checkpoint-every", str(checkpoint_every)),
            *("--workers", str(workers), "--seed", str(seed)),
        ]
        self._cleanup = ExitStack()

    def __enter__(self) -> Self:
        # A launcher of torch that is killed leaves its log folders: give it a temporary folder that is removed.
        scratch = self._cleanup.enter_context(
            tempfile.TemporaryDirectory(prefix="streampack-", ignore_cleanup_errors=True)
        )
        self._output = Path(scratch, "output.txt")
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(  # noqa: S603 (our own module, with numbers and a folder as arguments)
                [
                    *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "localhost"),
                    *("--nproc-per-node", str(self._ranks), "-m", "streampack.examples.train", str(self._folder)),
                    *self._arguments,
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # On CPUs: the ranks are the same on every machine, however many GPUs it has.
                env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "TMPDIR": scratch},
                start_new_session=True,
            )
        self._cleanup.callback(self._end)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cleanup.close()

    def steps(self) -> Iterator[Entry]:
        """What rank 0 has logged last, every 50 ms, until the training has ended with success.

        Raises:
            StreampackError: it failed, or made no step for two minutes.
        """
        newest, moved = None, time.monotonic()
        while True:
            code = self._process.poll()
            for entry in self._entries("rank-0")[-1:]:
                if entry != newest:
                    newest, moved = entry, time.monotonic()
                yield entry
            if code == 0:
                return
            if code is not None or time.monotonic() - moved > _STALLED_S:
                what = f"ended with exit code {code}" if code else f"has made no step for {_STALLED_S:.0f} seconds"
                said = self._output.read_text(errors="replace").strip()
                raise StreampackError(f"the training on {plural(self._ranks, 'rank')} {what}; it said:\n{said[-4000:]}")
            time.sleep(_POLL_S)  # another process, of which only its file tells

    def kill(self) -> None:
        """Send SIGKILL to the launcher, the ranks and their workers, as if the machine had failed."""
        # torchrun puts every rank into a session of its own, so its process group is not all of it. It is killed first,
        # since it would notice that its ranks die.
        for leader in (self._process.pid, *{entry.pid for entry in self._entries("rank-*")}):
            with suppress(ProcessLookupError):
                if os.getpgid(leader) == leader:
                    os.killpg(leader, signal.SIGKILL)
        self._process.wait()

    def _entries(self, rank: str) -> list[Entry]:
        logs = sorted(self._folder.glob(f"log-*-{rank}-of-{self._ranks}.jsonl"))
        return [entry for log in logs for entry in read_log(log)]

    def _end(self) -> None:
        if self._process.poll() is not None:
            return
        self._process.terminate()  # torchrun ends its ranks, and kills those that do not end
        try:
            self._process.wait(timeout=45)
        except subprocess.TimeoutExpired:
            self.kill()
