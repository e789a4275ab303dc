"""Coverage-guided fuzzing of what reads untrusted bytes, outside of CI: atheris (libFuzzer) over the tests' targets.

    python -m venv fuzz && fuzz/bin/pip install -e '.[test]' atheris
    fuzz/bin/python tests/fuzz/run.py tar -max_total_time=300        a name of `fuzzing.TARGETS`; libFuzzer's options
    fuzz/bin/python tests/fuzz/run.py tar crash-...                  one input again

What breaks is written to `crash-...` in the current folder. Make an example in `tests/component/test_fuzz.py` of it.
"""

import sys
import tempfile
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parent.parent))
with atheris.instrument_imports(include=["streampack", "yaml", "fuzzing"]):
    from support import fuzzing

from support.seeds import SEEDS


def main() -> None:
    name, *options = sys.argv[1:]
    target = fuzzing.TARGETS[name]
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(SEEDS.get(name, [])):
            (Path(corpus) / f"seed{number}").write_bytes(seed)
        once = any(Path(option).is_file() for option in options)
        atheris.Setup([sys.argv[0], *options, *([] if once else ["-max_len=20000", corpus])], target)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
