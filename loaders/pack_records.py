"""What is packed and what becomes of it: options, source images, records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class PackError(RuntimeError):
    """Packing cannot go on; the message says why and what to do."""


@dataclass(frozen=True)
class PackOptions:
    """What the records of a packed set are like.

    Attributes:
        max_side: longest side of an image, pixels; larger ones are shrunk, smaller ones left as they are.
        quality: of the JPEG, as Pillow counts it.
        keep: store the original JPEG data without loss instead; ``max_side`` and ``quality`` do not apply.
        restart_blocks: a restart marker follows every so many blocks (MCUs), or about as many that divide a row. 0 is
            2, which saves 7 % of the decoding that 4 takes for 3 % more bytes, and with ``keep`` 4, as there it saves 2
            to 4 % for 9 % more bytes.
        renditions: longest sides of smaller versions that are stored beside each image, from the largest to the
            smallest.
        shard_mb: a shard ends when its images have so many million bytes.
    """

    max_side: int = 500
    quality: int = 90
    keep: bool = False
    restart_blocks: int = 0
    renditions: tuple[int, ...] = ()
    shard_mb: int = 512

    def __post_init__(self) -> None:
        object.__setattr__(self, "renditions", tuple(sorted(set(self.renditions), reverse=True)))
        if not self.restart_blocks:
            object.__setattr__(self, "restart_blocks", 4 if self.keep else 2)
        limits = {"max_side": (16, 65500), "quality": (1, 100), "restart_blocks": (1, 1024), "shard_mb": (1, 1 << 20)}
        for name, (low, high) in limits.items():
            if not low <= getattr(self, name) <= high:
                option = "--" + name.replace("_", "-")
                raise PackError(f"{option} must be between {low} and {high}, got {getattr(self, name)}")
        if self.renditions and not 16 <= self.renditions[-1] <= self.renditions[0] <= 65500:
            raise PackError(f"--renditions must be between 16 and 65500, got {self.renditions}")
        if not self.keep and self.renditions and self.renditions[0] >= self.max_side:
            raise PackError(f"--renditions must be below --max-side {self.max_side}, got {self.renditions[0]}")


class SourceImage(NamedTuple):
    """Where the bytes of an image are, and what to store beside them."""

    file: str
    offset: int
    size: int
    name: str
    label: int


@dataclass(frozen=True)
class Jpeg:
    """One JPEG record.

    Attributes:
        data: a baseline JPEG with restart markers.
        width, height: upright, pixels.
        checksum: XXH64 of ``data``.
        restart_index: uint32 little-endian: see `kernels.restart.interval_starts`.
        restart_checksum: XXH64 of ``restart_index``.
    """

    data: bytes
    width: int
    height: int
    checksum: int
    restart_index: bytes
    restart_checksum: int


@dataclass(frozen=True)
class PackedImage:
    """What is stored of one image.

    Attributes:
        source: what it was made from.
        orientation: EXIF orientation, 1 to 8, that the stored pixels still have.
        components: 1 for gray, else 3.
        image: the record.
        renditions: smaller versions, in the order of the options; None where the image is no larger itself.
        changes: what was done to the file that a user may want to know.
    """

    source: SourceImage
    orientation: int
    components: int
    image: Jpeg
    renditions: tuple[Jpeg | None, ...]
    changes: tuple[str, ...]

    @property
    def stored_bytes(self) -> int:
        """Bytes of all its JPEG data and restart indexes."""
        jpegs = (self.image, *self.renditions)
        return sum(len(jpeg.data) + len(jpeg.restart_index) for jpeg in jpegs if jpeg is not None)


@dataclass(frozen=True)
class BadImage:
    """An image that cannot be decoded, and why."""

    source: SourceImage
    reason: str
