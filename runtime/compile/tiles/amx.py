"""Tiles for Intel AMX: a matrix of 16 pixels by 16 channels in each of up to six registers."""

from dataclasses import dataclass

from .spec import PANEL, ConvSpec
from .x86 import Avx512Vnni, constants_512, head, write_512

# Of the eight registers the last two hold inputs and weights. The intrinsics of gcc 12 do not tell the compiler that
# they read memory.
_INPUT, _WEIGHTS = 6, 7
_REST_INPUT, _REST_WEIGHTS = 4, 5

_AMX = """\
#include <cpuid.h>
#define FB_AMX_SIZES(p) __asm__ volatile("ldtilecfg %0" : : "m"(*(const uint8_t (*)[64])(p)))
#define FB_AMX_RELEASE() __asm__ volatile("tilerelease")
#define FB_AMX_LOAD(t, p, step) \\
  __asm__ volatile("tileloadd {(%0,%1,1), %%tmm" #t "|tmm" #t ", [%0+%1]}" : : "r"(p), "r"((long)(step)) : "memory")
#define FB_AMX_STORE(t, p, step) \\
  __asm__ volatile("tilestored {%%tmm" #t ", (%0,%1,1)|[%0+%1], tmm" #t "}" : : "r"(p), "r"((long)(step)) : "memory")
#define FB_AMX_DOT(c, a, b) \\
  __asm__ volatile("tdpbusd {%%tmm" #b ", %%tmm" #a ", %%tmm" #c "|tmm" #c ", tmm" #a ", tmm" #b "}" : :)
"""

# Sums must go from the matrix registers through memory, which costs more than a few products by AVX-512.
_SHORT = Avx512Vnni()


def _is_short(spec: ConvSpec) -> bool:
    return spec.segments * spec.length <= 64


def _pieces(length: int) -> tuple[int, int]:
    """Input bytes of an instruction and of a last, shorter one (0: there is none)."""
    count = -(-length // 64)
    for pieces in range(count, count + count // 4 + 1):
        if length % (4 * pieces) == 0:
            return length // pieces, 0
    return 64, length % 64


@dataclass(frozen=True)
class Amx:
    """Intel AMX, requantized by AVX-512."""

    name: str = "amx"
    condition: str = "defined(__x86_64__) && defined(__linux__)"
    target: str = Avx512Vnni.target
    # The kernel must be asked for the registers: arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA).
    detect: str = (
        f"({Avx512Vnni.detect} && __extension__({{ unsigned a, b, c, d; long result = 158;"
        " int has = __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 24 & 3) == 3;"
        ' if (has) __asm__ volatile("syscall" : "+a"(result) : "D"(0x1023L), "S"(18L) : "rcx", "r11", "memory");'
        " has && result == 0; }))"
    )
    signed: bool = False
    prelude: str = Avx512Vnni.prelude + _AMX

    def shape(self, spec: ConvSpec) -> tuple[int, int]:
        """Panels and most pixels."""
        if _is_short(spec):
            return _SHORT.shape(spec)
        most = 4 if _pieces(spec.length)[1] else 6
        tiles = -(-spec.panels // most)
        return -(-spec.panels // tiles), 16

    def enter(self, spec: ConvSpec, pixels: int) -> str:
        """C that sets rows and bytes a row of the registers."""
        if _is_short(spec):
            return ""
        piece, rest = _pieces(spec.length)
        sizes = [(pixels, 64)] * 4 + [(pixels, rest), (rest // 4, 64)] + [(pixels, piece), (piece // 4, 64)]
        if not rest:
            sizes[4:6] = [(pixels, 64)] * 2
        widths = "".join(f"{width}, 0, " for _, width in sizes)
        rows = ", ".join(str(row) for row, _ in sizes)
        config = f"1, {'0, ' * 15}{widths}{'0, ' * 16}{rows}"
        return f"{{ static const uint8_t sizes[64] = {{ {config} }}; FB_AMX_SIZES(sizes); }}"

    def leave(self, spec: ConvSpec) -> str:
        """C that tells the processor that the registers are free."""
        return "" if _is_short(spec) else "FB_AMX_RELEASE();"

    def tile(self, name: str, spec: ConvSpec, pixels: int, panels: int, tail: int) -> str:
        """The C function of one tile."""
        if _is_short(spec):
            return _SHORT.tile(name, spec, pixels, panels, tail)
        piece, rest = _pieces(spec.length)
        lines = [head(name, spec)]
        lines.append(f"  _Alignas(64) int32_t sums[{pixels * panels * PANEL}];")
        # A row distance of zero repeats the bias for all pixels.
        lines += [f"  FB_AMX_LOAD({n}, bias + {n * PANEL}, 0);" for n in range(panels)]
        lines.append(f"  for (int r = 0; r < {spec.segments}; r++) {{ const fb_t *a = seg[r] + at;")
        main = spec.length - rest
        if main:
            lines.append(f"    for (int k = 0; k < {main}; k += {piece}, w += {piece * PANEL}) {{")
            lines += _multiply(spec, "a + k", (_INPUT, _WEIGHTS), panels)
            lines.append("    }")
        if rest:
            lines += _multiply(spec, f"a + {main}", (_REST_INPUT, _REST_WEIGHTS), panels)
            lines.append(f"    w += {rest * PANEL};")
        lines.append("  }")
        lines += [f"  FB_AMX_STORE({n}, sums + {n * PANEL}, {64 * panels});" for n in range(panels)]
        return "\n".join([*lines, *_write(spec, pixels, panels, tail), "}"])


def _multiply(spec: ConvSpec, inputs: str, registers: tuple[int, int], panels: int) -> list[str]:
    """C that adds the products of one piece of a segment."""
    a, b = registers
    lines = [f"      FB_AMX_LOAD({a}, {inputs}, {spec.step});"]
    for n in range(panels):
        lines.append(f"      FB_AMX_LOAD({b}, w + {n * spec.panel_bytes}, 64); FB_AMX_DOT({n}, {a}, {b});")
    return lines


def _write(spec: ConvSpec, pixels: int, panels: int, tail: int) -> list[str]:
    """C that writes ``sums``: a few pixels at a time, so that they fill whole vectors of bytes."""
    group = max(4 // panels, 1)
    values = [f"_mm512_load_si512(s + {i * PANEL})" for i in range(group * panels)]
    lines = [*constants_512(spec, panels), "  const int32_t *s = sums;"]
    lines.append(f"  for (int m = 0; m < {pixels // group}; m++, s += {len(values) * PANEL}) {{")
    lines += ["  " + line for line in write_512(spec, values, panels, tail)]
    lines.append(f"    out += {group * spec.out_step // (4 if spec.raw else 1)};\n  }}")
    if pixels % group:
        lines += write_512(spec, values[: pixels % group * panels], panels, tail)
    return lines
