"""Runs the CUDA kernels on the CPU: their own sources, compiled by the C++ compiler against an emulated CUDA runtime."""
