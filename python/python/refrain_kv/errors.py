"""What a caller must know; a miss and a refused save are answers, and never come here."""


class RefrainError(Exception):
    """Base of all: `code` is a stable name to branch on, `retry` says whether the same call may
    succeed later."""

    code: str
    retry: bool

    def __init__(self, message: str, code: str, retry: bool) -> None:
        super().__init__(message)
        self.code = code
        self.retry = retry

    def __reduce__(self) -> tuple[type["RefrainError"], tuple[str, str, bool]]:
        return type(self), (str(self), self.code, self.retry)


class AbsentError(RefrainError):
    """No sidecar answers what only it can say. Its client goes on looking for it by itself."""


class RefusedError(RefrainError):
    """The sidecar is there and says no; its message names what it minds."""


class ArenaTooSmallError(RefrainError):
    """No block could ever be saved: give the client a larger `session_arena_bytes`."""


class BlocksOutOfRangeError(RefrainError):
    """Blocks that the lookup did not match, or that the prompt does not have."""


class CacheError(RefrainError):
    """Arrays that are no paged KV cache, or pages that it does not have."""


class TransferError(RefrainError):
    """The GPU, or the thread that copies, is of no more use; or the load was cancelled."""


class AnswerError(RefrainError):
    """Client and sidecar do not fit each other."""


class AddressError(RefrainError, ValueError):
    """A text that is no address."""


class CancelledError(RefrainError):
    """The call was cancelled before it had an answer."""


class ClosedError(RefrainError):
    """Closed, or made before a fork of this process."""
