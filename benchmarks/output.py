"""Where results are written, and what each of them tells of its making."""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from xnor_rrm.machine import machine_fingerprint, versions

from . import peers

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def parser(text: str | None) -> argparse.ArgumentParser:
    """A command's parser; text : the docstring of its module."""
    return argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)


def made_by(module: str, arguments: Sequence[str]) -> dict[str, Any]:
    """command (less the folder it wrote to), date, commit ("+" if files differ), machine, versions."""
    arguments = list(arguments)
    if "--results" in arguments:
        at = arguments.index("--results")
        del arguments[at : at + 2]
    return {
        "command": shlex.join(["python", "-m", f"benchmarks.{module}", *arguments]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "machine": machine_fingerprint(),
        "versions": {**versions(), **peers.versions()},
    }


def write(folder: Path, name: str, content: dict[str, Any]) -> Path:
    """Write folder/name.json; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return path


def _commit() -> str | None:
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--exclude=*"],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()
