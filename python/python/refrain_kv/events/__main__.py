"""Serves one sidecar's changes to routers until it is ended by a signal."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import time

import refrain_kv

from .ledger import DIALECTS, Event, Ledger
from .publisher import Publisher

log = logging.getLogger("refrain_kv.events")

#: How long the replay socket may wait, and a signal.
TICK = 0.1
#: Events of one batch, and blocks of one event that takes back.
BATCH, TAKEN_BACK = 64, 1024


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m refrain_kv.events", description=__doc__)
    add = parser.add_argument
    add("--connect", metavar="ADDRESS", help="of the sidecar; by default REFRAIN_ADDRESS")
    add("--bind", default="tcp://*:5557", help="ZMQ endpoint of events (%(default)s)")
    add("--replay", help="ZMQ endpoint where missed batches are asked for; none by default")
    add(
        "--dialect",
        choices=DIALECTS,
        default="vllm",
        help="whose events these are like (%(default)s)",
    )
    add("--model", help="tell of this model's blocks alone")
    add("--topic", default="", help="of every batch")
    add("--data-parallel-rank", type=int, default=0, metavar="RANK")
    add(
        "--buffer",
        type=int,
        default=10_000,
        metavar="BATCHES",
        help="kept for replay (%(default)s)",
    )
    return parser.parse_args(argv)


def follow(watch: refrain_kv.Watch, ledger: Ledger, publisher: Publisher) -> None:
    """Until the watch ends, which it does with an error."""
    while True:
        change = watch.next(TICK)
        events: list[Event] = []
        while change is not None:
            event = ledger.take(change)
            if event is not None:
                events.append(event)
            change = watch.next(0) if len(events) < BATCH else None
        if events:
            publisher.publish(events)
        publisher.serve_replay()


def main() -> None:
    given = arguments()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(message)s")
    # Where Ctrl-C would end it.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    ledger = Ledger(DIALECTS[given.dialect], given.model)
    publisher = Publisher(
        given.bind,
        given.replay,
        topic=given.topic,
        rank=given.data_parallel_rank,
        buffer=given.buffer,
        high_water=100_000,
    )
    log.info("events at %s", " and replay at ".join(publisher.endpoints))
    told = ""
    try:
        while True:
            try:
                with refrain_kv.Watch(given.connect) as watch:
                    log.info("follows the sidecar")
                    told = ""
                    follow(watch, ledger, publisher)
            except refrain_kv.AddressError as error:
                sys.exit(str(error))
            except refrain_kv.RefrainError as error:
                # Said once, not with every attempt.
                if str(error) != told:
                    told = str(error)
                    log.warning("no sidecar to follow: %s", error)
            # What it has after all, it says when it is there again.
            for event in ledger.forget(TAKEN_BACK):
                publisher.publish([event])
            publisher.serve_replay()
            time.sleep(TICK)
    except KeyboardInterrupt:
        pass
    finally:
        publisher.close()


if __name__ == "__main__":
    main()
