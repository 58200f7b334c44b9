"""The kinds of processors that C is generated for, and their instruction sets."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import UsageError
from .tiles.amx import Amx
from .tiles.neon import Neon, NeonDot
from .tiles.plain import Plain
from .tiles.spec import Tiles
from .tiles.wasm import WasmSimd
from .tiles.x86 import Avx2, Avx512Vnni, AvxVnni


@dataclass(frozen=True)
class Family:
    """The instruction sets of one kind of processor, best first; the last one runs on every processor of the kind.

    ``condition`` tells the preprocessor which processors these are.
    """

    name: str
    condition: str
    tiles: tuple[Tiles, ...]

    @property
    def signed(self) -> bool:
        """True if activations are stored as int8, false if as uint8."""
        return self.tiles[0].signed


_PLAIN = Plain()
X86 = Family("x86", "defined(__x86_64__)", (Amx(), Avx512Vnni(), AvxVnni(), Avx2(), _PLAIN))
ARM64 = Family("arm64", "defined(__aarch64__) && defined(__ARM_NEON)", (NeonDot(), Neon()))
WASM = Family("wasm", "defined(__wasm_simd128__)", (WasmSimd(),))
# Microcontrollers: plain C, which uses the DSP instructions of Cortex-M4 and M7.
PLAIN = Family("plain", "1", (_PLAIN,))

# What --isa accepts: kinds of processors in one file, the fallback last.
CHOICES: dict[str, tuple[Family, ...]] = {
    "auto": (X86, ARM64, WASM, PLAIN),
    "x86": (X86,),
    "arm64": (ARM64,),
    "wasm": (WASM, PLAIN),
    "cortex-m": (PLAIN,),
    "plain": (PLAIN,),
}


def families(isa: str) -> tuple[Family, ...]:
    """The families of a choice, or the one instruction set of that name. Raises ``UsageError`` for unknown names."""
    if isa in CHOICES:
        return CHOICES[isa]
    for family in _all():
        for tiles in family.tiles:
            if tiles.name == isa:
                return (Family(isa, tiles.condition, (tiles,)),)
    raise UsageError(f"instruction set {isa!r} is not one of {', '.join(isa_names())}")


def isa_names() -> list[str]:
    """What ``families`` accepts: kinds of processors, then single instruction sets."""
    single = [tiles.name for family in _all() for tiles in family.tiles]
    return list(dict.fromkeys([*CHOICES, *single]))


def _all() -> Sequence[Family]:
    return list(dict.fromkeys(family for families in CHOICES.values() for family in families))
