"""Where each key of a YAML file is, for errors that name file and line.

In:    the nodes of a file. Out: `file:line` of a key, given as the path of keys to it.
Never: a key that is given twice in one mapping; YAML itself would silently take the last value.
"""

from pathlib import Path
from typing import TypeAlias

import yaml

from streampack.errors import ConfigError

Keys: TypeAlias = tuple[str, ...]
"""The path to a value: the keys of the mappings around it, and its own."""


class Lines:
    """The line of each key.

    Raises:
        ConfigError: a key is given twice.
    """

    def __init__(self, file: Path, root: yaml.Node | None) -> None:
        self.file = file
        self._lines: dict[Keys, int] = {(): 1}
        if root is not None:
            self._collect(root, ())

    def _collect(self, node: yaml.Node, keys: Keys) -> None:
        if isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self._lines[(*keys, str(index))] = item.start_mark.line + 1
                self._collect(item, (*keys, str(index)))
        for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
            inner = (*keys, str(key.value))
            first, self._lines[inner] = self._lines.get(inner), key.start_mark.line + 1
            if first is not None:
                problem = f"`{'.'.join(inner)}` is given twice, first on line {first}; leave one"
                raise ConfigError(problem, url=self.where(inner))
            self._collect(value, inner)

    def where(self, keys: Keys) -> str:
        """`file:line` of the key, or of the nearest key above it."""
        while keys not in self._lines:
            keys = keys[:-1]
        return f"{self.file}:{self._lines[keys]}"
