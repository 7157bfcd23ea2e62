"""How the C library's allocator treats freed memory."""

from __future__ import annotations

import torch

_LARGEST = (32 << 20) - (1 << 16)  # glibc adapts to freed blocks below 32 MiB


def keep_freed_memory() -> None:
    """Let glibc keep up to 64 MiB of freed memory instead of returning it to the system; elsewhere without effect.

    A training step that allocates and frees a few megabytes at a time pays for the page faults of getting them back
    in every step, up to a third of a narrow model's time. glibc raises its thresholds when a large block is freed
    (mallopt(3), M_MMAP_THRESHOLD): one block, allocated and freed untouched, is enough. Call it once, before training.
    """
    block = torch.empty(_LARGEST, dtype=torch.uint8)
    del block
