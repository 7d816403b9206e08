"""The examples of docs/python.md run as they stand there."""

from __future__ import annotations

import re

import pytest
from conftest import ROOT

EXAMPLES = re.findall(
    r"^```python (\w+)\n(.*?)^```$", (ROOT / "docs/python.md").read_text(), re.M | re.S
)


@pytest.mark.parametrize(("needs", "example"), EXAMPLES, ids=[needs for needs, _ in EXAMPLES])
def test_examples_of_the_page_run(sidecar, monkeypatch, needs, example):
    pytest.importorskip(needs, reason=f"{needs} is not installed: its example does not run")
    monkeypatch.setenv("REFRAIN_ADDRESS", sidecar.address)
    names = {}
    exec(compile(example, f"docs/python.md ({needs})", "exec"), names)
    if needs == "torch":
        assert (names["cached"], names["stored"]) == (0, 96)
        names["client"].close()
    else:
        assert names["usable"] == names["loaded"].blocks == names["saved"].saved
        assert names["counts"]


def test_the_page_has_an_example_of_each_kind():
    assert [needs for needs, _ in EXAMPLES] == ["torch", "numpy"]
