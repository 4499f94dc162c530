"""Loaded by pytest: with ``OPIK_OFFLINE_AUTO=1``, the import of the package protects the test run and each worker."""
