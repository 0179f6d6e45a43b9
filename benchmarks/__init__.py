"""Benchmarks: the store against its rivals, interleaved in one run.

`python -m benchmarks`, from the root of the repository, prints them; `--help` lists the options.
`workloads` is the glossary of what is timed, `adapters` holds one file per rival, `bench_mmapkv`
names the subject and the ratios it has to reach.
"""
