"""What a library exports: names and arguments of its functions, each once.

Ours, where T tokens belong to B sequences, laid one after another; all but the logits are on the
library's device:

    rwkv_world_prefill      (ids int32 [T], offsets int32 [B + 1], slots, pool, parameters)
    rwkv_world_decode       (ids int32 [1], slots, pool, parameters)
    rwkv_world_batch_decode (ids int32 [B], slots, pool, parameters)

Sequence b owns the tokens `offsets[b] .. offsets[b + 1]`. `slots` int32 [B, 2] are the slots of
`pool`, float32 [S, L, R, D], that each sequence reads and writes. The result is a tuple: logits
float32 [B, V] after each sequence's last token, and the pool. `parameters` are the stored tensors,
or what `rwkv_world_pack_<n>` makes of them, as the metadata says.

Stock's functions take and give what mlc_llm's engine does.
"""

from __future__ import annotations

# What all names of ours begin with.
OURS = "rwkv_world_"
PREFILL = OURS + "prefill"
DECODE = OURS + "decode"
BATCH_DECODE = OURS + "batch_decode"
# Functions that pack parameters end in a number.
PACK = OURS + "pack"

IDS, OFFSETS, SLOTS, POOL = "ids", "offsets", "slots", "pool"

METADATA = "_metadata"
