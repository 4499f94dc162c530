"""Keeps the traces of the Opik SDK through an outage, from within a process.

    import opik_offline
    opik_offline.protect()

finds or starts the one opik-offline agent of this user for the configured server, waits until it is ready, and leads the
SDK to it, whether `opik` was imported before or after. ``import opik_offline.auto`` and ``%load_ext opik_offline`` do the
same. Nothing here raises into your program unless you ask for it with ``strict=True``: if the agent can't be started, a
warning says so and the SDK stays as it was.

``OPIK_OFFLINE_AUTO=1`` in the environment protects wherever something imports this package: your own code, or pytest,
which loads its plugin.
"""

import os as _os

from ._agent import ProtectionError
from ._protection import FlushResult, Status, flush, protect, status, unprotect

__all__ = [
    "FlushResult",
    "ProtectionError",
    "Status",
    "flush",
    "protect",
    "status",
    "unprotect",
]


def load_ipython_extension(ipython):
    """Called by ``%load_ext opik_offline``."""
    print(protect())


def unload_ipython_extension(ipython):
    """Called by ``%unload_ext opik_offline``."""
    unprotect()


if _os.environ.get("OPIK_OFFLINE_AUTO", "").strip().lower() in ("1", "true", "yes", "on"):
    protect()
