"""Measurements of unfoldconv beside other implementations: ``python -m benchmarks --help``."""
