"""Compiled kernels, installed as `xnor_rrm.kernels`. README.md in this folder explains the layouts."""

if __name__ != "xnor_rrm.kernels":  # a second identity would compile and cache everything twice
    raise ImportError(
        f"the folder kernels/ is the package xnor_rrm.kernels, and was imported as {__name__!r}; "
        "install the project (pip install -e .) and import xnor_rrm.kernels"
    )
