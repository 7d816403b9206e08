"""x"""

from __future__ import annotations

import pytest
from pools import PAGE
from workers import mha, mla, swa

pytest_plugins = ["servers", "workers"]


@pytest.mark.parametrize("make", [mha, mla, swa])
def test_what_was_offloaded_is_loaded_by_another_worker(worker, make):
    here = worker(make)
    assert here.ask(1, 6) == (0, {})
    before = here.compute(1, 6)
    assert here.offloaded() == [True]
    there = worker(make)
    loaded, after = there.ask(1, 6)
    assert loaded == 6 * PAGE
    assert after["kv"] == before["kv"]
    if make is swa:
        print(len(after["swa"]), len(before["swa"]))
