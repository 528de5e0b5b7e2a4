"""How long a process may take before it counts as hung, on a machine that others load too."""

from __future__ import annotations

SECONDS = 900
