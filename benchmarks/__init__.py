"""Benchmarks. Run from the repository's root: `python -m benchmarks.run`, or a part by itself.

shapes/*.txt   real binary layers, as data         layershapes.py  reads them
kernels.py     every kernel against its peers      timing.py       clock, rounds, quartiles
record.py      what a network feeds its layers     bounds.py       operations counted, bounds they imply
replay.py      the kernels on such recordings      peers.py        OpenVINO, PyTorch, bnn-lab
stems.py       float stems against PyTorch's        openvino_network.py  whole networks in OpenVINO
run.py         one command for all of it           tables.py       results/*.json -> docs/benchmarks.md
output.py      where results go, made by what      bars.py         what is to be reached
retired/       variants that lost, with figures
"""
