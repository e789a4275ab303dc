"""Arguments that stay as the constructor was given them.

In:    an attribute that is set on a dataset or a loader.
Out:   an `AttributeError` where it is the name of an argument that cannot be changed: it would be ignored.
"""

import inspect
from typing import ClassVar


class FixedArguments:
    """Base of a class whose arguments are set once, unless it has a property with a setter for one."""

    _instead: ClassVar[str]
    """What to make another one of."""
    _fixed: ClassVar[frozenset[str]]

    def __init_subclass__(cls, *, instead: str = "") -> None:
        """`instead`: of the class that has the arguments."""
        super().__init_subclass__()
        if instead:
            cls._instead, cls._fixed = instead, frozenset(inspect.signature(cls).parameters)

    def __setattr__(self, name: str, value: object) -> None:
        """Refuse what would be ignored."""
        if name in self._fixed and getattr(getattr(type(self), name, None), "fset", None) is None:
            raise AttributeError(f"{name} cannot be set on a {type(self).__name__}: make another {self._instead}")
        super().__setattr__(name, value)
