"""How a weight lies: on disk, in memory, and packed for a CPU; the formats that choose it."""

from mlc_rwkv_world.storage.formats import FORMATS, Format, format_named
from mlc_rwkv_world.storage.stored import Stored

__all__ = ["FORMATS", "Format", "Stored", "format_named"]
