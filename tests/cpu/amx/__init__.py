"""Runs the AMX kernels on any processor with AVX-512: their own sources, on a model of the tile instructions."""
