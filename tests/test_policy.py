"""The cost model: measured, stored, read again; a damaged store is measured again, and never believed."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest

from xnor_rrm import policy
from xnor_rrm.policy import Costs

SOME = Costs(bit_mac=0.001, set_row=0.5, word=1.0, table_byte=0.02, vector=50.0, sliced_vector=30.0, row=1.0)


@pytest.fixture
def store(tmp_path, monkeypatch):
    """An empty store, and a stand-in for measuring that counts how often it was asked."""
    asked = []
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(policy, "measure", lambda: asked.append(1) or SOME)
    policy.machine_costs.cache_clear()
    yield asked
    policy.machine_costs.cache_clear()


def test_measured_once_and_stored(store):
    assert policy.machine_costs() == SOME
    policy.machine_costs.cache_clear()
    assert policy.machine_costs() == SOME
    assert len(store) == 1


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"bit_mac": -1}', json.dumps(asdict(SOME) | {"row": -1})])
def test_a_damaged_store_is_measured_again(store, text):
    policy.machine_costs()
    policy._stored_at().write_text(text)
    policy.machine_costs.cache_clear()
    assert policy.machine_costs() == SOME
    assert len(store) == 2


def test_fit_finds_what_made_the_times_and_nothing_below_zero():
    rng = np.random.default_rng(0)
    amounts = rng.uniform(1, 100, (40, 3))
    times = amounts @ [0.5, 0.0, 2.0]
    found = policy._fit([(tuple(a), t) for a, t in zip(amounts, times, strict=True)])
    assert np.allclose(found, [0.5, 0.0, 2.0])
    lying = policy._fit([(tuple(a), t) for a, t in zip(amounts, amounts @ [1.0, -0.3, 1.0], strict=True)])
    assert min(lying) >= 0


def test_measure_times_the_engine_itself():
    costs = policy.measure()
    assert costs.bit_mac > 0
    assert costs.row > 0
