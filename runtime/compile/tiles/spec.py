"""What a generated kernel is given: one convolution as constants of C, and the instruction set that runs it."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

# Output channels in a panel of weights. All instruction sets read the same packing of the weights:
# [panel][segment][length / 4][16 channels][4 inputs], int8.
PANEL = 16


@dataclass(frozen=True)
class ConvSpec:
    """One convolution (or fully connected layer) as its generated kernel sees it.

    A window is ``segments`` runs of ``length`` input bytes each; the windows of neighbouring pixels are ``step`` bytes
    apart. ``length`` is a multiple of 4: bytes beyond the real run meet weights of zero. Output pixels are
    ``out_step`` bytes apart and have ``channels`` values. ``zero_point``, ``low`` and ``high`` quantize the output as
    int8. If ``clamps``, a scaled sum may exceed int32 and must be limited before it is converted. If ``raw``, the
    output is the int32 sums, ``channels`` of them, without requantization. If ``symmetric``, no weight is -128, so that
    the sum of two products of int8 fits an int16.
    """

    segments: int
    length: int
    step: int
    out_step: int
    channels: int
    zero_point: int
    low: int
    high: int
    clamps: bool = False
    raw: bool = False
    symmetric: bool = False

    @property
    def panels(self) -> int:
        """Panels of weights, the last one possibly with fewer channels."""
        return -(-self.channels // PANEL)

    @property
    def panel_bytes(self) -> int:
        """Size of one panel of weights."""
        return self.segments * self.length * PANEL

    def tail(self, first: int, panels: int) -> int:
        """Channels of the last of ``panels`` panels from ``first`` on: 1 to 16."""
        return min(self.channels - (first + panels - 1) * PANEL, PANEL)


def clang_target(target: str) -> str:
    """``Tiles.target`` as clang's ``target`` attribute names it: ``arch=armv8.2-a+dotprod`` is ``dotprod``."""
    return target.rpartition("+")[2] if target.startswith("arch=") else target


class Tiles(Protocol):
    """An instruction set: its C conditions and the tile of a convolution, a block of pixels by panels."""

    @property
    def name(self) -> str:
        """Suffix of its C functions, such as ``avx512vnni``."""
        ...

    @property
    def condition(self) -> str:
        """What the preprocessor must know for the code to compile, such as ``defined(__x86_64__)``."""
        ...

    @property
    def target(self) -> str:
        """Features for ``#pragma GCC target``, or nothing."""
        ...

    @property
    def detect(self) -> str:
        """C expression that is true on processors that have the features; empty if ``condition`` suffices."""
        ...

    @property
    def signed(self) -> bool:
        """True if activations are stored as int8, false if as uint8: the int8 value plus 128."""
        ...

    @property
    def prelude(self) -> str:
        """C that stands once before the tiles: includes and helper functions, without ``target`` pragmas."""
        ...

    def shape(self, spec: ConvSpec) -> tuple[int, int]:
        """Panels in a tile and most pixels in a tile, for this convolution."""
        ...

    def tile(self, name: str, spec: ConvSpec, pixels: int, panels: int, tail: int) -> str:
        """A C function that computes ``pixels`` pixels of ``panels`` panels.

        Its signature is ``static FB_NOINLINE void NAME(const fb_t *const *seg, int at, const int8_t *w,
        const float *scale, const int32_t *bias, OUT *out)`` with ``OUT`` = ``fb_t``, or ``int32_t`` if ``spec.raw``:

        * ``seg[r] + at`` is the first byte of segment ``r`` of the first pixel; up to 15 bytes beyond the last byte of
          a segment may be read;
        * ``w`` are the panels one after another, ``spec.panel_bytes`` each, 64-byte aligned;
        * ``scale`` and ``bias`` hold 16 values for each panel (surplus channels hold zeros); the bias includes the
          input's zero point;
        * ``out`` is the first channel of the first pixel. Of the last panel only ``tail`` channels are written; no
          byte beyond them may be touched.

        A sum becomes ``clamp(round_half_even((float)sum * scale) + zero_point, low, high)``, stored as int8, or as
        that plus 128.
        """
        ...


@runtime_checkable
class StatefulTiles(Tiles, Protocol):
    """Tiles that set registers of the processor once for many calls.

    In a function of the emitted C, ``enter`` stands before the tiles of one convolution and ``leave`` after the last
    of them. All tiles between have the same number of pixels: where they do not divide a row, the last tile overlaps
    the one before it and writes the same bytes again.
    """

    def enter(self, spec: ConvSpec, pixels: int) -> str:
        """C statements before the tiles of ``pixels`` pixels of a convolution; may be empty."""
        ...

    def leave(self, spec: ConvSpec) -> str:
        """C statements after them; may be empty."""
        ...


@runtime_checkable
class KernelTiles(Tiles, Protocol):
    """Tiles with C functions that replace the portable kernels of the same name, written for ``target``."""

    kernels: str
