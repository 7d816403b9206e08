"""Clients of other machines: the same bytes come back, inside mutual TLS, and nothing is said to
whom nobody is sure of."""

from __future__ import annotations

import shutil
import socket
import subprocess

import pytest
import refrain_kv as kv
from conftest import PATIENCE, content, namespace, prompt

BLOCKS = 5


def address() -> str:
    """A port of this machine that was free just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def payloads(registration: kv.RemoteRegistration, seed: int, blocks: int) -> bytes:
    """Blocks as they lie in a buffer, nothing between their stripes."""
    out = bytearray()
    for block in range(blocks):
        payload = bytearray(registration.payload_bytes)
        for number, (offset, length) in enumerate(registration.stripes):
            payload[offset : offset + length] = content(seed + 100 * block + number, length)
        out += payload
    return bytes(out)


def signed(home, name: str, authority=None) -> dict:
    """A key and a certificate for this machine, by an authority of its own or by that one."""
    key, certificate = home / f"{name}.key", home / f"{name}.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "2", "-keyout", key, "-out", certificate, "-subj", f"/CN={name}"]
    if authority is None:
        command += ["-addext", "keyUsage=keyCertSign"]
    else:
        command += ["-CA", authority["certificate"], "-CAkey", authority["key"]]
        command += ["-addext", "subjectAltName=IP:127.0.0.1"]
        command += ["-addext", "basicConstraints=critical,CA:FALSE"]
    subprocess.run(command, check=True, capture_output=True)
    key.chmod(0o600)
    return {"certificate": certificate, "key": key}


def test_what_is_written_is_read_and_found_by_workers_there(sidecars):
    there = address()
    sidecar = sidecars(f'peers.listen = "{there}"\n')
    with kv.RemoteClient(there, deadline=PATIENCE) as client:
        registration = client.register(namespace(), shard=0)
        size, data = registration.payload_bytes, payloads(registration, 1, BLOCKS)
        with registration.lookup(prompt(1, BLOCKS)) as lookup:
            assert (lookup.prompt_blocks, lookup.matched_blocks, lookup.absent) == (
                BLOCKS,
                0,
                False,
            )
            saved = lookup.write(data)
            assert (saved.saved, saved.refusal) == (BLOCKS, "none")
        with registration.lookup(prompt(1, BLOCKS + 1)) as lookup:
            assert lookup.matched_blocks == BLOCKS and lookup.renew(5.0)
            into = bytearray(BLOCKS * size)
            assert lookup.read(into).blocks == BLOCKS
            assert into == data
            one = memoryview(bytearray(2 * size))
            assert lookup.read(one, first=2, blocks=2).reason == "none"
            assert one == data[2 * size : 4 * size]
            with pytest.raises(kv.RefrainError) as small:
                lookup.read(bytearray(size))
            assert small.value.code == "buffer"
            with pytest.raises(kv.BlocksOutOfRangeError):
                lookup.read(bytearray(2 * size), first=BLOCKS - 1, blocks=2)
            with pytest.raises(ValueError):
                lookup.write(bytes(size + 1))
            with pytest.raises(BufferError):
                lookup.read(bytes(BLOCKS * size))
            assert lookup.release()
        with kv.Client(sidecar.address, deadline=PATIENCE) as worker:
            found = worker.register(namespace(), shard=0).lookup(prompt(1, BLOCKS))
            assert found.matched_blocks == BLOCKS
            found.release()


def test_a_sidecar_that_is_gone_makes_misses(sidecars):
    there = address()
    sidecar = sidecars(f'peers.listen = "{there}"\n')
    with kv.RemoteClient(there, deadline=PATIENCE) as client:
        registration = client.register(namespace(), shard=0)
        size = registration.payload_bytes
        held = registration.lookup(prompt(2, 1))
        sidecar.kill()
        assert held.write(bytes(size)).saved == 0
        assert not held.release()
        absent = registration.lookup(prompt(2, 1))
        assert (absent.absent, absent.prompt_blocks, absent.matched_blocks) == (True, 1, 0)
        assert absent.read(bytearray()).reason == "unspecified"
        assert (absent.write(bytes(size)).refusal, absent.release()) == ("unspecified", False)
        sidecar.start()


def test_nothing_is_said_in_plain_text_beyond_this_machine():
    with kv.RemoteClient("192.0.2.1:9470") as client, pytest.raises(kv.RefrainError) as refused:
        client.register(namespace(), shard=0)
    assert (refused.value.code, refused.value.retry) == ("plain_text", False)
    with pytest.raises(ValueError):
        kv.RemoteClient("127.0.0.1:1", ca="ca.pem")
    with pytest.raises(kv.AddressError):
        kv.RemoteClient("https://127.0.0.1:1")
    with pytest.raises(kv.RefrainError) as unread:
        kv.RemoteClient("127.0.0.1:1", ca="a.pem", certificate="b.pem", key="/nowhere/c.key")
    assert unread.value.code == "identity" and "/nowhere/c.key" in str(unread.value)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates")
def test_blocks_come_inside_mutual_tls_and_to_nobody_else(sidecars, tmp_path):
    authority, other = signed(tmp_path, "ca"), signed(tmp_path, "other")
    node, mine = signed(tmp_path, "node", authority), signed(tmp_path, "mine", authority)
    foreign = signed(tmp_path, "foreign", other)
    there, ca = address(), authority["certificate"]
    sidecars(
        f'peers.listen = "{there}"\npeers.tls_ca = "{ca}"\n'
        f'peers.tls_certificate = "{node["certificate"]}"\npeers.tls_key = "{node["key"]}"\n'
    )
    with kv.RemoteClient(there, ca=ca, deadline=PATIENCE, **mine) as client:
        registration = client.register(namespace(), shard=0)
        data = payloads(registration, 3, 2)
        with registration.lookup(prompt(3, 2)) as lookup:
            assert lookup.write(data).saved == 2
        with registration.lookup(prompt(3, 2)) as lookup:
            into = bytearray(len(data))
            assert lookup.read(into).blocks == 2
            assert into == data
    strangers = [{"ca": ca, **foreign}, {"ca": other["certificate"], **mine}, {}]
    for stranger in strangers:
        with kv.RemoteClient(there, deadline=2.0, **stranger) as client:
            registration = client.register(namespace(), shard=0)
            assert registration.lookup(prompt(3, 2)).absent
            with pytest.raises(kv.AbsentError):
                registration.payload_bytes
