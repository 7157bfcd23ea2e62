"""The sizes of a model and its batch; what every contender is given."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Shape:
    """Batch, length L, width H, order N and number of blocks."""

    name: str
    batch: int
    length: int
    width: int
    order: int
    blocks: int = 1

    @property
    def step_flops(self) -> int:
        """Operations of the matrix products of one training step, three times those of the forward pass.

        Per position and block 8 H N for B and C, complex, against real vectors, and 4 H^2 for the gated linear unit.
        """
        per_position = 8 * self.width * self.order + 4 * self.width**2
        return 3 * self.batch * self.length * self.blocks * per_position

    def to_dict(self) -> dict[str, str | int]:
        """The fields, to be sent to a worker."""
        return asdict(self)

    def __str__(self) -> str:
        blocks = f"{self.blocks} block{'s' if self.blocks > 1 else ''}"
        return f"{self.name}: batch {self.batch}, L {self.length}, H {self.width}, N {self.order}, {blocks}"


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("smnist-256", 50, 784, 8, 256),
        Shape("smnist-47", 50, 784, 8, 47),
        Shape("smnist-13", 50, 784, 8, 13),
        Shape("wide-128", 8, 2048, 128, 256, 6),
        Shape("wide-512", 2, 1024, 512, 384, 6),
    )
}
TINY = Shape("tiny", 2, 24, 4, 6)
TINY_WIDE = Shape("tiny wide", 2, 24, 160, 6)
