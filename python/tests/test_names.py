"""Blocks that an engine names: each by itself, in any order, or as a chain; a watcher is told their
names, and nobody else's."""

from __future__ import annotations

import pytest
import refrain_kv as kv
from conftest import PATIENCE, prompt
from named import Worker, names


@pytest.fixture
def watch(sidecar):
    watches = []

    def open_() -> kv.Watch:
        watches.append(kv.Watch(sidecar.address, deadline=PATIENCE))
        return watches[-1]

    yield open_
    for it in watches:
        it.close()


def changes(watch: kv.Watch, kind: str, blocks: int) -> list[kv.Change]:
    """Until as many blocks are told."""
    found = []
    while sum(len(change.sequence_hashes) for change in found) < blocks:
        change = watch.next(PATIENCE)
        assert change is not None
        if change.kind == kind:
            found.append(change)
    return found


def told(found: list[kv.Change]) -> set[bytes]:
    return {name for change in found for name in change.engine_hashes}


def test_separate_blocks_are_found_whatever_was_saved_before_them(client):
    worker, hashes = Worker(client), names(1, 6)
    worker.save(hashes[4:], separate=True)
    worker.save([hashes[1], hashes[0]], separate=True)
    assert worker.look_up(hashes, separate=True) == 2
    assert worker.look_up(hashes[4:], separate=True) == 2
    assert worker.tiers(hashes) == [("ssd", 2), ("unspecified", 2), ("ssd", 2)]
    # Those between are saved, and no other a second time.
    worker.save(hashes, separate=True)
    assert worker.look_up(hashes, separate=True) == 6


def test_separate_blocks_are_found_after_a_restart(client, sidecar):
    worker, hashes = Worker(client), names(1, 6)
    worker.save(hashes[3:], separate=True)
    worker.save(hashes[:2], separate=True)
    sidecar.kill()
    sidecar.start()
    client.connect()
    assert worker.tiers(hashes) == [("ssd", 2), ("unspecified", 1), ("ssd", 3)]


def test_one_separate_block_goes_without_the_others(client, sidecar):
    worker, hashes = Worker(client), names(1, 3)
    worker.save(hashes, separate=True)
    sidecar.flip(sidecar.blocks()[0], 100)
    worker.load(hashes[:1])
    assert worker.tiers(hashes) == [("unspecified", 1), ("ssd", 2)]


def test_a_chain_is_a_chain(client):
    worker, hashes = Worker(client), names(1, 4)
    worker.save(hashes)
    assert worker.look_up(hashes) == 4
    assert worker.look_up(hashes[1:]) == 0
    assert worker.look_up(hashes[1:], separate=True) == 3


def test_a_watcher_is_told_the_engines_names(client, watch):
    worker, hashes = Worker(client), names(1, 4)
    watching = watch()
    assert watching.next(PATIENCE).kind == "snapshot_end"
    worker.save(hashes)
    found = changes(watching, "stored", 4)
    assert told(found) == set(hashes)
    assert {(it.model, it.block_tokens, it.shard, it.shards) for it in found} == {
        ("tiny", 16, 0, 1)
    }
    assert not told(found) & {it for change in found for it in change.sequence_hashes}
    assert told(changes(watch(), "stored", 4)) == set(hashes)


def test_names_are_known_again_after_a_restart_when_a_worker_uses_them(client, sidecar, watch):
    worker, hashes = Worker(client), names(1, 4)
    worker.save(hashes)
    sidecar.kill()
    sidecar.start()
    watching = watch()
    assert told(changes(watching, "stored", 4)) == set()
    client.connect()
    worker.look_up(names(2, 1))
    assert told(changes(watching, "stored", 4)) == set(hashes)


def test_blocks_that_are_saved_by_tokens_have_no_names(client, watch):
    worker = Worker(client)
    worker.save_tokens(prompt(1, 3))
    assert told(changes(watch(), "stored", 3)) == set()


def test_a_watch_ends_with_its_sidecar(sidecar, watch):
    watching = watch()
    assert watching.next(PATIENCE).kind == "snapshot_end"
    assert watching.next(0.01) is None
    sidecar.kill()
    with pytest.raises(kv.AbsentError):
        watching.next(PATIENCE)
    with pytest.raises(kv.AbsentError):
        watch()
