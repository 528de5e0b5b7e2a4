"""Functions in LLVM's own language, for what TIR cannot say. LLVM inlines them wherever they are.

A kernel carries their text in an attribute, see `IMPORT`, and calls them by name.
"""

from __future__ import annotations

# The key of the attribute; its value is a text below.
IMPORT = "pragma_import_llvm"

# (sum float32 x n, a and b 2n bfloat16 as uint32 x n) -> sum and, in each lane, two products.
DOT_BFLOAT16 = "rwkv_world_dot_bfloat16"


def dot_bfloat16_ir(intrinsic: str, lanes: int) -> str:
    """`DOT_BFLOAT16` by an instruction; in TIR, an intrinsic's vectors of bfloat16 become float."""
    total, words, pairs = f"<{lanes} x float>", f"<{lanes} x i32>", f"<{2 * lanes} x bfloat>"
    return f"""
declare {total} @{intrinsic}({total}, {pairs}, {pairs})
define {total} @{DOT_BFLOAT16}({total} %sum, {words} %a, {words} %b) alwaysinline {{
  %x = bitcast {words} %a to {pairs}
  %w = bitcast {words} %b to {pairs}
  %all = call {total} @{intrinsic}({total} %sum, {pairs} %x, {pairs} %w)
  ret {total} %all
}}
"""


# () -> (). Memory is not read earlier than this. Left alone, LLVM moves the inputs of a long,
# unrolled tile to its start, where registers are too few, and spills them. It is no instruction.
ORDER = "rwkv_world_order"
# (int16x16) -> the same. The sum given here is not taken apart to be added in another order.
KEEP = "rwkv_world_keep"

ORDER_IR = f"""
define void @{ORDER}() alwaysinline {{
  call void asm sideeffect "", "~{{memory}}"()
  ret void
}}
"""
KEEP_IR = f"""
define <16 x i16> @{KEEP}(<16 x i16> %v) alwaysinline {{
  %same = call <16 x i16> asm "", "=x,0"(<16 x i16> %v)
  ret <16 x i16> %same
}}
"""

# (whether the first, a, b) -> one of two pointers.
CHOOSE = "rwkv_world_choose"
CHOOSE_IR = f"""
define ptr @{CHOOSE}(i1 %first, ptr %a, ptr %b) alwaysinline {{
  %chosen = select i1 %first, ptr %a, ptr %b
  ret ptr %chosen
}}
"""
