"""What is on SSD, told to routers as engines tell what they have: ZMQ, msgpack, replay.

`python -m refrain_kv.events --help` says how. Needs `pyzmq` and `msgspec`, which vLLM and SGLang
bring.
"""
