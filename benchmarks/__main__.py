"""`python -m benchmarks`: the store's, the suite that the project is about."""

from __future__ import annotations

from .bench_mmapkv import run_as_program

if __name__ == "__main__":
    run_as_program()
