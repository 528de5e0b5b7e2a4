"""The names inside an artifact.

<output>/<model>-<quantization>/
    params/
        params_shard_*.bin
        tensor-cache.json       the index, written last
        ndarray-cache.json      the same content under its older name
        mlc-chat-config.json
        tokenizer_model
    <model>-<quantization>-<target>.so
    SHA256SUMS                  the list of all these files: for `verify` and `sha256sum -c`, and
                                no library runs that it does not name
"""

from __future__ import annotations

PARAMS_DIR = "params"
TENSOR_CACHE = "tensor-cache.json"
NDARRAY_CACHE = "ndarray-cache.json"
CHAT_CONFIG = "mlc-chat-config.json"
TOKENIZER_MODEL = "tokenizer_model"
SHARD_NAME = "params_shard_{index}.bin"
SHA256SUMS = "SHA256SUMS"
MODEL_TYPE = "rwkv_world"
LIBRARY_ENDINGS = (".so", ".dylib", ".dll")
