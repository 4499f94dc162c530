"""Protects this process on import: ``import opik_offline.auto``."""

from ._protection import protect

protect()
