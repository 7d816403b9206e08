"""What an engine cannot be cached with is refused when it starts, by name."""

from __future__ import annotations

import pytest
from engines import EngineFailed


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"load_format": "dummy"}, "`weights`"),
        ({"prefix_caching_hash_algo": "xxhash"}, "`block hashes`"),
        ({"extra": {"adress": "unix:/s"}}, "adress"),
        ({"extra": {"lookup_deadline_ms": 0}}, "lookup_deadline_ms"),
        ({"extra": {"load_deadline_ms": None}}, "load_deadline_ms"),
    ],
)
def test_what_cannot_be_known_is_refused_by_name(engine, models, options, named):
    with pytest.raises(EngineFailed, match=named):
        engine.open(models / "llama", "unix:/nowhere", **options)
