"""Sweep files, and sweeps without a server."""
