"""Acts on modules of another package, before or after they are executed.

The package need not be there, now or ever; where its modules are loaded already, the caller sees
to them itself.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

Action = Callable[[ModuleType], None]


class ImportHook:
    """A finder that finds nothing itself: it asks the others, and wraps what they found.

    `before` and `after` get each module of `package`, and `failed` one that raised while it was
    executed, with the error, which then goes on its way. None of the three may raise.
    """

    def __init__(
        self,
        package: str,
        before: Action,
        after: Action,
        failed: Callable[[ModuleType, BaseException], None],
    ) -> None:
        self.package = package
        self._prefix = package + "."
        self._before, self._after, self._failed = before, after, failed

    def install(self) -> None:
        """Puts the hook in front of all finders; once, however often it is called."""
        if self not in sys.meta_path:
            sys.meta_path.insert(0, self)

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != self.package and not name.startswith(self._prefix):
            return None
        for finder in sys.meta_path:
            find_spec = getattr(finder, "find_spec", None)
            if finder is self or find_spec is None:
                continue
            spec: ModuleSpec | None = find_spec(name, path, target)
            if spec is not None:
                self._wrap(spec)
                return spec
        return None

    def _wrap(self, spec: ModuleSpec) -> None:
        """Replaces `exec_module` of the loader that was made for this one module."""
        loader: Any = spec.loader
        execute = getattr(loader, "exec_module", None)
        if execute is None or isinstance(loader, type):
            return

        def exec_module(module: ModuleType) -> None:
            # A loader that several modules share would see the others too.
            if getattr(module.__spec__, "name", None) != spec.name:
                execute(module)
                return
            self._before(module)
            try:
                execute(module)
            except BaseException as error:
                self._failed(module, error)
                raise
            self._after(module)

        try:
            loader.exec_module = exec_module
        except AttributeError:
            # A loader that takes no attributes: the module is loaded as if we were not here.
            return
