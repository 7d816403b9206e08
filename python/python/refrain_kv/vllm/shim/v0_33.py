"""vLLM 0.33: a sleeping engine asks for its memory back."""

from . import v0_32


class Base(v0_32.Base):
    """What the connector is, to this vLLM."""

    def unregister_kv_caches(self) -> None:
        if self._worker is not None:
            self._worker.give_back()

    def restore_kv_caches(self) -> None:
        if self._worker is not None:
            self._worker.take_again()
