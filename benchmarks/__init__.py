"""Benchmarks: each package against its rivals, interleaved in one run.

`python -m benchmarks`, from the root of the repository, prints the store's; `--help` lists the options.
`workloads` is the glossary of what is timed, `adapters` holds one file per rival, `bench_mmapkv`
names the subject and the ratios and limits it has to keep. For the log it is `bench_mmaplog`, for the mapping
layer `bench_mmapio`, each with a glossary of its own.
"""
