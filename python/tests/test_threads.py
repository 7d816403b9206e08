"""Who waits has given the GIL away, a signal ends the wait, and what is closed, cancelled, dropped
or taken into another process does no harm.

The clients here reach their sidecar through a relay that is a thread of this very process: whatever
waits for an answer with the GIL held would wait in vain. The relay can also keep an answer back, so
that a call is known to be under way.
"""

from __future__ import annotations

import functools
import gc
import os
import signal
import socket
import threading

import pytest
import refrain_kv as kv
from conftest import LAYERS, PATIENCE, namespace, prompt
from test_caches import BLOCKS, Worker


class Relay:
    """Carries what a client and a sidecar say to each other, by Python's threads."""

    def __init__(self, sidecar) -> None:
        self.path = sidecar.home / "relay"
        self.open = threading.Event()
        self.open.set()
        #: A call was kept back.
        self.asked = threading.Event()
        self.carried = 0
        self._sidecar = str(sidecar.socket)
        # Bytes and descriptors of the session go straight.
        (sidecar.home / "relay.session").symlink_to(f"{self._sidecar}.session")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self) -> str:
        return f"unix:{self.path}"

    def hold(self) -> None:
        self.asked.clear()
        self.open.clear()

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            sidecar = socket.socket(socket.AF_UNIX)
            sidecar.connect(self._sidecar)
            for source, target in ((client, sidecar), (sidecar, client)):
                threading.Thread(target=self._carry, args=(source, target), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while said := source.recv(65536):
                if not self.open.is_set():
                    if begins_a_call(said):
                        self.asked.set()
                    self.open.wait()
                self.carried += 1
                target.sendall(said)
        except OSError:
            # Whoever it came from or went to has gone.
            pass
        target.close()


def begins_a_call(said: bytes) -> bool:
    """Whether one of these HTTP/2 frames has headers; what keeps the connection up has none."""
    while said:
        length, kind = int.from_bytes(said[:3], "big"), said[3]
        if kind == 1:
            return True
        said = said[9 + length :]
    return False


@pytest.fixture
def relay(sidecar) -> Relay:
    return Relay(sidecar)


@pytest.fixture
def relayed(relay):
    with kv.Client(relay.address, session_arena_bytes=16 << 20, deadline=PATIENCE) as client:
        yield client


def test_every_call_that_waits_lets_other_threads_run(relay, relayed):
    def carried(call):
        before = relay.carried
        answer = call()
        assert relay.carried > before
        return answer

    tokens = prompt(1, BLOCKS)
    worker = carried(lambda: Worker(relayed))
    worker.compute(1, range(BLOCKS))
    lookup = carried(lambda: worker.registration.lookup(tokens))
    saved = carried(lambda: lookup.save_from(worker.cache, worker.pages(range(BLOCKS))))
    assert saved.saved == BLOCKS
    assert carried(lookup.renew)
    assert carried(lookup.release)
    worker.clear()
    lookup = worker.registration.lookup(tokens)
    load = carried(lambda: lookup.load_into(worker.cache, worker.pages(range(BLOCKS))))
    assert [load.layer(layer) for layer in range(LAYERS)] == [BLOCKS] * LAYERS
    assert load.finish().blocks == BLOCKS
    assert worker.has(1, range(BLOCKS))


def test_waits_for_a_layer_and_for_the_end_let_other_threads_run(relay, relayed):
    worker, tokens = Worker(relayed), prompt(2, BLOCKS)
    worker.save(tokens, 2, range(BLOCKS))
    worker.clear()
    with worker.registration.lookup(tokens) as lookup:
        relay.hold()
        loading = lookup.begin_load_into(worker.cache, worker.pages(range(BLOCKS)))
        assert relay.asked.wait(PATIENCE)
        assert not loading.done()
        with pytest.raises(TimeoutError):
            loading.result(timeout=0)
        # Only another thread can let the answer through.
        threading.Thread(target=relay.open.set).start()
        with loading.result() as load:
            assert load.layer(LAYERS - 1) == BLOCKS
            ending = load.begin_finish()
            assert ending.result().blocks == BLOCKS
            assert ending.done() and ending.result() is ending.result()


@pytest.mark.parametrize("call", ["lookup", "load", "result", "renew"])
def test_ctrl_c_ends_a_wait_and_leaves_all_in_order(relay, relayed, call):
    worker, tokens = Worker(relayed), prompt(3, BLOCKS)
    worker.save(tokens, 3, range(BLOCKS))
    lookup = worker.registration.lookup(tokens)
    pages = worker.pages(range(BLOCKS))
    calls = {
        "lookup": lambda: worker.registration.lookup(tokens),
        "load": lambda: lookup.load_into(worker.cache, pages),
        "result": lambda: lookup.begin_load_into(worker.cache, pages).result(),
        "renew": lookup.renew,
    }

    def interrupt() -> None:
        assert relay.asked.wait(PATIENCE)
        os.kill(os.getpid(), signal.SIGINT)

    relay.hold()
    interrupter = threading.Thread(target=interrupt)
    interrupter.start()
    with pytest.raises(KeyboardInterrupt):
        calls[call]()
    interrupter.join()
    relay.open.set()
    worker.clear()
    with worker.registration.lookup(tokens) as again:
        assert again.load_into(worker.cache, pages).finish().blocks == BLOCKS
    assert worker.has(3, range(BLOCKS))


def test_a_cancelled_call_is_over_at_once_and_touches_no_page_afterwards(relay, relayed):
    worker, tokens = Worker(relayed), prompt(4, BLOCKS)
    worker.save(tokens, 4, range(BLOCKS))
    worker.clear()
    with worker.registration.lookup(tokens) as lookup:
        relay.hold()
        loading = lookup.begin_load_into(worker.cache, worker.pages(range(BLOCKS)))
        assert relay.asked.wait(PATIENCE)
        loading.cancel()
        assert loading.done()
        for _ in range(2):
            with pytest.raises(kv.CancelledError):
                loading.result()
        relay.open.set()
    with worker.registration.lookup(tokens) as lookup:
        with lookup.load_into(worker.cache, worker.pages(range(BLOCKS))) as load:
            pass
        with pytest.raises(kv.ClosedError):
            load.finish()
        worker.clear()
        assert not any(plane.any() for layer in worker.planes for plane in layer)


def test_no_call_after_close_does_more_than_raise(relay, relayed):
    worker, tokens = Worker(relayed), prompt(5, 2)
    worker.save(tokens, 5, range(2))
    lookup = worker.registration.lookup(tokens)
    load = lookup.load_into(worker.cache, worker.pages(range(2)))
    relay.hold()
    pending = worker.registration.begin_lookup(tokens)
    assert relay.asked.wait(PATIENCE)
    relayed.close()
    assert relayed.closed
    relayed.close()
    relay.open.set()
    assert pending.done()
    for call in (
        pending.result,
        lambda: relayed.register(namespace(), shard=0),
        lambda: worker.registration.lookup(tokens),
        lambda: worker.registration.begin_lookup(tokens),
        lambda: worker.registration.layers_per_stripe,
        lambda: lookup.load_into(worker.cache, worker.pages(range(2))),
        lambda: lookup.save_from(worker.cache, worker.pages(range(2)), first=0),
        lookup.renew,
        lookup.release,
        lookup.begin_release,
        lambda: load.layer(0),
        load.finish,
        lambda: load.layers_on_their_way,
    ):
        with pytest.raises(kv.ClosedError) as closed:
            call()
        assert (closed.value.code, closed.value.retry) == ("closed", False)
    assert lookup.matched_blocks == 2
    load.cancel()
    lookup.close()
    worker.registration.close()
    worker.cache.close()
    worker.cache.close()


def test_what_is_dropped_in_any_order_ends_by_itself(relay, relayed):
    worker, tokens = Worker(relayed), prompt(6, BLOCKS)
    worker.save(tokens, 6, range(BLOCKS))
    for _ in range(20):
        lookup = worker.registration.lookup(tokens)
        load = lookup.load_into(worker.cache, worker.pages(range(BLOCKS)))
        pending = worker.registration.begin_lookup(tokens)
        del lookup, load, pending
        gc.collect()
    relay.hold()
    pending = worker.registration.begin_lookup(tokens)
    assert relay.asked.wait(PATIENCE)
    del pending
    relay.open.set()
    assert worker.registration.lookup(tokens).matched_blocks == BLOCKS


def test_a_client_closed_by_another_thread_wakes_whoever_waits(relay, relayed):
    worker = Worker(relayed)
    relay.hold()

    def close() -> None:
        assert relay.asked.wait(PATIENCE)
        relayed.close()

    closer = threading.Thread(target=close)
    closer.start()
    with pytest.raises(kv.ClosedError):
        worker.registration.lookup(prompt(7, 2))
    closer.join()
    relay.open.set()


def test_a_forked_child_is_refused_and_harms_nobody(sidecar, client):
    worker, tokens = Worker(client), prompt(8, 2)
    worker.save(tokens, 8, range(2))
    lookup = worker.registration.lookup(tokens)
    load = lookup.load_into(worker.cache, worker.pages(range(2)))
    pending = worker.registration.begin_lookup(tokens)
    child = os.fork()
    if child == 0:
        os._exit(in_the_child(sidecar, client, worker, lookup, load, pending))
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert load.finish().blocks == 2
    assert pending.result().matched_blocks == 2
    assert lookup.release()


def in_the_child(sidecar, client, worker, lookup, load, pending) -> int:
    """0 where everything made before is refused, and a new client is served."""
    # A hang ends it too.
    signal.alarm(int(PATIENCE))
    for call in (
        functools.partial(worker.registration.lookup, prompt(8, 2)),
        lookup.release,
        load.finish,
        pending.done,
        worker.cache.close,
    ):
        try:
            call()
            return 1
        except kv.ClosedError:
            pass
    client.close()
    address = sidecar.address
    del call, client, worker, lookup, load, pending
    gc.collect()
    with kv.Client(address, session_arena_bytes=16 << 20) as client:
        matched = client.register(namespace(), shard=0).lookup(prompt(8, 2)).matched_blocks
    return 0 if matched == 2 else 2
