"""The rooms' conftests by names of their own, for mypy alone: see `exclude` in pyproject.toml."""
# ruff: noqa: F401

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import builder.conftest
    import chat.conftest
    import checkpoint.conftest
    import compiler.conftest
    import kernels.conftest
    import numerics.conftest
    import runtime.conftest
    import stock.conftest
