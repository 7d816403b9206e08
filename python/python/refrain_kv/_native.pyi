"""The client, compiled."""

from collections.abc import Sequence
from os import PathLike
from types import TracebackType
from typing import Any, Generic, Literal, Protocol, Self, TypeVar, final

_Answer = TypeVar("_Answer", covariant=True)

class _Closes:
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None = ...,
        error: BaseException | None = ...,
        trace: TracebackType | None = ...,
        /,
    ) -> None: ...

class _ArrayInterface(Protocol):
    @property
    def __array_interface__(self) -> dict[str, Any]: ...

class _CudaArrayInterface(Protocol):
    @property
    def __cuda_array_interface__(self) -> dict[str, Any]: ...

class _DLPack(Protocol):
    def __dlpack__(self) -> Any: ...

class _Buffer(Protocol):
    def __buffer__(self, flags: int, /) -> memoryview: ...

class _Listed(Protocol):
    def tolist(self) -> Any: ...

_Array = _ArrayInterface | _DLPack | _CudaArrayInterface
_Integers = Sequence[int] | _Listed
_Pages = _Integers | Sequence[_Integers]

@final
class AttentionGroup:
    """Layers that cache alike."""

    @staticmethod
    def full(layers: int) -> AttentionGroup: ...
    @staticmethod
    def sliding_window(layers: int, window_tokens: int) -> AttentionGroup: ...
    @staticmethod
    def recurrent(layers: int) -> AttentionGroup: ...

@final
class Namespace:
    """All that must be equal before the KV of equal tokens is. Nothing of it has a safe default: a
    model without an adapter says so, by an empty digest."""

    def __init__(
        self,
        *,
        tenant: str,
        model: str,
        weights: str,
        config_digest: bytes,
        kv_dtype: str,
        block_tokens: int,
        layers: int,
        layer_bytes: int,
        layout: Literal["key_value", "latent"],
        groups: Sequence[AttentionGroup],
        tensor_parallel: int,
        pipeline_parallel: int,
        context_parallel: int,
        adapter_digest: bytes,
        salt: bytes,
    ) -> None: ...
    @property
    def block_tokens(self) -> int: ...
    @property
    def block_bytes(self) -> int: ...

@final
class Client(_Closes):
    """A session with the sidecar of this node, for as long as there is one. It is opened, and
    opened again after it was lost, in the background: an absent sidecar makes misses, at once.

    `address` is `unix:PATH`; by default `REFRAIN_ADDRESS`, then `unix:/run/refrain/refrain.sock`.
    `deadline`, in seconds, is that of every call.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        session_arena_bytes: int = 67108864,
        deadline: float = 5.0,
    ) -> None: ...
    def connect(self) -> None:
        """Asks whether the sidecar is there; raises `AbsentError` if it is not."""
    @property
    def connected(self) -> bool:
        """Whether there is a session with it, as far as is known. Does not wait."""
    def register(
        self,
        namespace: Namespace,
        *,
        shard: int,
        block_bytes: int | None = None,
        check: bool = True,
    ) -> Registration:
        """With the sidecar that is there, or else with the one that comes. What the sidecar minds
        is raised now or, if it was absent or without `check`, by look-ups."""
    @property
    def closed(self) -> bool: ...
    def close(self) -> None:
        """Ends all that was made with it; then no page is read or written any more."""

@final
class Registration(_Closes):
    """A namespace and shard that lookups are made in. It outlives the sidecar. `deadline`, in
    seconds, is a lookup's own; the client's by default. No answer by then is a miss."""

    def lookup(
        self, tokens: _Integers, *, extra_keys: Sequence[bytes] = (), deadline: float | None = None
    ) -> Lookup:
        """The longest resident prefix of a prompt, leased. `extra_keys` part equal tokens."""
    def begin_lookup(
        self, tokens: _Integers, *, extra_keys: Sequence[bytes] = (), deadline: float | None = None
    ) -> Pending[Lookup]: ...
    def lookup_hashes(
        self, hashes: Sequence[bytes], *, separate: bool = False, deadline: float | None = None
    ) -> Lookup:
        """By an engine's names for its full blocks, of 32 bytes, each naming the whole prefix.
        `separate` blocks are looked up, loaded and saved each by itself, behind none of the others;
        what matches is still the run from the first one on."""
    def begin_lookup_hashes(
        self, hashes: Sequence[bytes], *, separate: bool = False, deadline: float | None = None
    ) -> Pending[Lookup]: ...
    def begin_load_hashes(
        self,
        hashes: Sequence[bytes],
        cache: KvCache,
        pages: _Pages,
        *,
        first: int = 0,
        separate: bool = False,
        deadline: float,
        after: int | None = None,
    ) -> Pending[Loaded]:
        """Look-up, load and release in one: `pages` are of block `first` and those behind it. What
        is not there by the deadline, for whatever reason, is a miss. What comes are the blocks
        before the first miss, `separate` ones too."""
    def begin_save_hashes(
        self,
        hashes: Sequence[bytes],
        cache: KvCache,
        pages: _Pages,
        *,
        first: int = 0,
        separate: bool = False,
        deadline: float,
        after: int | None = None,
    ) -> Pending[Saved]:
        """Look-up and save in one, tried again until the deadline while the sidecar is busy or the
        blocks before `first` are not there yet. The pages must keep their bytes until it is over,
        and are not read any more when it is. `separate` ones wait for no other."""
    @property
    def layers_per_stripe(self) -> int:
        """Layers that arrive together. Raises `AbsentError` until a sidecar has said it."""
    def close(self) -> None: ...

@final
class Plane:
    """An array of pages by its address: a page is `rows` runs of `row_bytes`. That it is memory,
    and stays so while the cache is open, is the caller's word."""

    def __init__(
        self,
        address: int,
        page_stride: int,
        row_bytes: int,
        *,
        rows: int = 1,
        row_stride: int | None = None,
    ) -> None: ...

@final
class KvCache(_Closes):
    """A paged KV cache in the memory of the host or of one GPU.

    `layers` has for each layer its array of pages, or a list of such arrays (keys and values). The
    first axis of an array is that of pages; the others lie in memory in their order. `groups` gives
    each layer's attention group, where they are several. Arrays are kept until the last copy ends.
    """

    def __init__(
        self,
        layers: Sequence[_Array | Plane | Sequence[_Array | Plane]],
        *,
        pages_per_block: int = 1,
        groups: Sequence[int] | None = None,
        pages: int | None = None,
        device: int | None = None,
    ) -> None: ...
    @property
    def layers(self) -> int: ...
    @property
    def pages(self) -> int: ...
    @property
    def layer_bytes(self) -> int:
        """Of one layer of one block."""
    @property
    def device(self) -> int | None: ...
    def close(self) -> None: ...

@final
class Lookup(_Closes):
    """The blocks of a prompt and those of them that are resident, leased until it is closed.

    `pages` are the page numbers of block `first` and those behind it, `pages_per_block` each; with
    several attention groups, one list for each. 4294967295 stands for a page that is not kept.
    `after` is a CUDA stream, as an integer, behind whose present work the copies begin.
    """

    @property
    def prompt_blocks(self) -> int: ...
    @property
    def matched_blocks(self) -> int: ...
    @property
    def absent(self) -> bool:
        """Whether no sidecar has answered in time: nothing is matched, nothing will be saved."""
    @property
    def tiers(self) -> list[tuple[Literal["host", "ssd", "peer", "unspecified"], int]]:
        """Where the matched blocks lie, in order; of separate ones, where all do that were asked
        for, and `unspecified` where they are not resident."""
    @property
    def expected_load(self) -> float:
        """Seconds that a load of all matched blocks should take."""
    @property
    def expected_peer(self) -> float:
        """Seconds that its blocks of tier `peer` alone take, which stand behind the others."""
    def load_into(
        self,
        cache: KvCache,
        pages: _Pages,
        *,
        first: int = 0,
        deadline: float | None = None,
        after: int | None = None,
    ) -> Load: ...
    def begin_load_into(
        self,
        cache: KvCache,
        pages: _Pages,
        *,
        first: int = 0,
        deadline: float | None = None,
        after: int | None = None,
    ) -> Pending[Load]: ...
    def save_from(
        self,
        cache: KvCache,
        pages: _Pages,
        *,
        first: int | None = None,
        after: int | None = None,
        durable: bool = False,
    ) -> Saved:
        """Saves blocks from `first` on (the first that was not matched, by default). The pages must
        keep their bytes until it returns. A refusal is an answer."""
    def begin_save_from(
        self,
        cache: KvCache,
        pages: _Pages,
        *,
        first: int | None = None,
        after: int | None = None,
        durable: bool = False,
    ) -> Pending[Saved]: ...
    def renew(self, seconds: float = 0.0) -> bool:
        """Prolongs the lease; `False`: it was over."""
    def release(self) -> bool:
        """Ends the lease, after all that was loaded has been copied. `False`: it did not hold all
        the while, and what was loaded does not count."""
    def begin_release(self) -> Pending[bool]: ...
    def close(self) -> None:
        """Has the lease released, without waiting for the answer."""

@final
class RemoteClient(_Closes):
    """A connection to a sidecar of another machine, made when it is used and again after it was
    lost. Blocks come and go in messages, from and to buffers of bytes.

    `address` is `HOST:PORT`, what that sidecar's config calls `peers.listen`. `ca`, `certificate`
    and `key` are files of mutual TLS, PEM; without them it speaks to addresses of this machine
    alone, unless `plain_text` says otherwise. `deadline`, in seconds, is that of every call.
    """

    def __init__(
        self,
        address: str,
        *,
        ca: str | PathLike[str] | None = None,
        certificate: str | PathLike[str] | None = None,
        key: str | PathLike[str] | None = None,
        plain_text: bool = False,
        deadline: float = 5.0,
    ) -> None: ...
    def register(
        self, namespace: Namespace, *, shard: int, block_bytes: int | None = None
    ) -> RemoteRegistration:
        """What the sidecar minds is raised now or, if it was absent, by look-ups."""
    @property
    def closed(self) -> bool: ...
    def close(self) -> None: ...

@final
class RemoteRegistration(_Closes):
    """A namespace and shard that lookups are made in. It outlives the sidecar. `deadline`, in
    seconds, is a lookup's own; the client's by default. No answer by then is a miss."""

    def lookup(
        self, tokens: _Integers, *, extra_keys: Sequence[bytes] = (), deadline: float | None = None
    ) -> RemoteLookup: ...
    def lookup_hashes(
        self, hashes: Sequence[bytes], *, separate: bool = False, deadline: float | None = None
    ) -> RemoteLookup: ...
    @property
    def payload_bytes(self) -> int:
        """Of a block in a buffer, padding between stripes included. Raises `AbsentError` until a
        sidecar has said it."""
    @property
    def stripes(self) -> list[tuple[int, int]]:
        """Where each lies in a payload, a whole number of layers: offset and length."""
    def close(self) -> None: ...

@final
class RemoteLookup(_Closes):
    """The blocks of a prompt and those of them that are resident, leased until it is closed.

    Buffers are contiguous and of bytes; they hold payload behind payload, `payload_bytes` each.
    """

    @property
    def prompt_blocks(self) -> int: ...
    @property
    def matched_blocks(self) -> int: ...
    @property
    def absent(self) -> bool:
        """Whether no sidecar has answered in time: nothing is matched, nothing will be written."""
    @property
    def tiers(self) -> list[tuple[Literal["host", "ssd", "peer", "unspecified"], int]]:
        """Where the matched blocks lie, in order."""
    def read(
        self,
        into: _Buffer,
        *,
        first: int = 0,
        blocks: int | None = None,
        deadline: float | None = None,
    ) -> Loaded:
        """Reads blocks from `first` on, all that matched by default, into a buffer of just their
        size. Bytes of blocks that are misses are zero."""
    def write(self, data: _Buffer, *, first: int | None = None, durable: bool = False) -> Saved:
        """Saves blocks from `first` on (the first that was not matched, by default). A refusal is
        an answer."""
    def renew(self, seconds: float = 0.0) -> bool:
        """Prolongs the lease; `False`: it was over."""
    def release(self) -> bool:
        """Ends the lease; whether it held until now. What was read counts all the same."""
    def close(self) -> None: ...

@final
class Load(_Closes):
    """Blocks on their way into pages. Leaving it, or dropping it, cancels what has not come; then
    the pages are the caller's again."""

    def layer(self, layer: int, stream: int = 0) -> int:
        """Waits until a layer is on its way, then has what is put on `stream` from now on wait for
        it. Returns how many blocks may be read; that may become fewer from layer to layer, and what
        was computed with more is to be thrown away."""
    @property
    def layers_on_their_way(self) -> int:
        """How many layers `layer` does not wait for. Does not wait itself."""
    def finish(self) -> Loaded:
        """Waits until all is copied."""
    def begin_finish(self) -> Pending[Loaded]: ...
    def cancel(self) -> None: ...

@final
class Loaded:
    """How a load ended."""

    @property
    def blocks(self) -> int:
        """Blocks from this one on are misses."""
    @property
    def reason(
        self,
    ) -> Literal[
        "none", "deadline", "damaged", "no_memory", "drive", "lease", "peer", "unspecified"
    ]:
        """Why they are; `unspecified` when the sidecar has gone."""
    @property
    def host_blocks(self) -> int: ...
    @property
    def ssd_blocks(self) -> int: ...
    @property
    def peer_blocks(self) -> int: ...

@final
class Saved:
    """What became of a save."""

    @property
    def offered(self) -> int:
        """Blocks that the sidecar wanted: without those that it had, or had no room for."""
    @property
    def saved(self) -> int:
        """How many of them are known to be stored, from the first one on."""
    @property
    def refusal(
        self,
    ) -> Literal["none", "busy", "no_space", "read_only", "draining", "no_parent", "unspecified"]:
        """Why it is not all; `unspecified` when the lease or the sidecar has gone."""
    @property
    def durable(self) -> bool: ...

@final
class Pending(_Closes, Generic[_Answer]):
    """A call that was begun and is not waited for. Dropping it cancels it."""

    def done(self) -> bool:
        """Whether `result` would not wait. Makes no call of any kind."""
    def result(self, timeout: float | None = None) -> _Answer:
        """Waits for the answer; raises `TimeoutError` after `timeout` seconds, and may be asked
        again."""
    def cancel(self) -> None:
        """Ends it if it is not over. Afterwards none of its pages is read or written."""

def forked() -> None:
    """Called in the child of a fork."""

@final
class Watch(_Closes):
    """Every change at one sidecar: all that is resident as `stored`, a `snapshot_end`, then what
    came and went since the beginning: a block may be told of again. Its errors are its end: changes
    were missed, or the sidecar has gone. `deadline`, in seconds, is that of its beginning."""

    def __init__(self, address: str | None = None, *, deadline: float = 5.0) -> None: ...
    def next(self, timeout: float | None = None) -> Change | None:
        """`None` when none comes within `timeout` seconds."""
    def close(self) -> None: ...

@final
class Change:
    """Blocks of one namespace and shard that came or went."""

    @property
    def epoch(self) -> int:
        """Differs after every start of the sidecar."""
    @property
    def sequence(self) -> int: ...
    @property
    def kind(self) -> Literal["stored", "removed", "snapshot_end", "unknown"]: ...
    @property
    def namespace_digest(self) -> bytes: ...
    @property
    def model(self) -> str:
        """Empty until a worker has registered the namespace since the sidecar's start."""
    @property
    def block_tokens(self) -> int: ...
    @property
    def shard(self) -> int: ...
    @property
    def shards(self) -> int:
        """Of each block: it is whole when all of them are resident."""
    @property
    def sequence_hashes(self) -> list[bytes]: ...
    @property
    def engine_hashes(self) -> list[bytes]:
        """The engine's names of these blocks, or none: where they were saved by tokens, and until a
        worker has looked up by names since the sidecar's start. Then they are told as stored."""
