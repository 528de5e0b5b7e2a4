"""What the checkpoint tests compare: tensors that were saved and tensors that were read."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from support.checkpoints import canonical_name

from mlc_rwkv_world.checkpoint import Checkpoint


def assert_holds(checkpoint: Checkpoint, saved: Mapping[str, np.ndarray]) -> None:
    """`checkpoint` has exactly the tensors `saved` (BlinkDL's names), to the bit, as float32."""
    expected = {canonical_name(name): array for name, array in saved.items()}
    assert set(checkpoint.names()) == set(expected)
    for name, array in expected.items():
        read = checkpoint.read(name)
        assert read.dtype == np.float32
        assert read.flags.c_contiguous
        assert read.shape == checkpoint.shape(name)
        assert read.ndim == (2 if array.squeeze().ndim == 2 else 1)
        np.testing.assert_array_equal(read.ravel(), array.ravel(), err_msg=name)
