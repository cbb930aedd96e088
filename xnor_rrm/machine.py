"""Which machine and which versions a measurement was taken on."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import Any

#: Features that decide which instructions the kernels become, by LLVM's names.
FEATURES = (
    "avx2",
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512vbmi",
    "avx512bitalg",
    "avx512vpopcntdq",
    "gfni",
    "neon",
    "sve",
)

PACKAGES = ("numpy", "numba", "llvmlite", "av", "torch", "xnor-rrm")


def machine_fingerprint() -> dict[str, Any]:
    """cpu (model), target and features (LLVM's view), cores (this process may use), load_average, system."""
    from llvmlite import binding

    features = binding.get_host_cpu_features()
    return {
        "cpu": _cpu_model(),
        "target": binding.get_host_cpu_name(),
        "features": [name for name in FEATURES if features.get(name)],
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_average": [round(load, 2) for load in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def versions() -> dict[str, str | None]:
    """Python's and the packages' versions, None where one is absent; imports none of them."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    """The processor's marketing name; Linux tells it in /proc/cpuinfo only."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
