"""How weights are stored: formats, and the group quantization behind some of them."""

from mlc_rwkv_world.quantization.formats import FORMATS, Format, format_named

__all__ = ["FORMATS", "Format", "format_named"]
