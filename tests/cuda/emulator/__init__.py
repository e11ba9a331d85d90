"""Runs CUDA kernels on the CPU: their own sources, compiled by g++ against an emulated CUDA runtime."""
