"""Tiles for Intel AMX: a matrix of 16 pixels by 16 channels in each of four registers."""

from dataclasses import dataclass

from .spec import PANEL, ConvSpec
from .x86 import Avx512Vnni, constants_512, head, write_512

# Registers: those of the sums, and inputs and weights of whole and of shorter instructions. More sums are no faster.
# The intrinsics of gcc 12 do not tell the compiler that they read memory.
_SUMS = 4
_REST_INPUT, _REST_WEIGHTS = 4, 5
_INPUT, _WEIGHTS = 6, 7

_AMX = """\
#if defined(__linux__)
#include <cpuid.h>
/* The kernel must be asked for the registers: arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA). */
#define FB_AMX_DETECT() __extension__({ \\
  unsigned a_, b_, c_, d_; \\
  long result_ = 158; \\
  const int has_ = __get_cpuid_count(7, 0, &a_, &b_, &c_, &d_) && (d_ >> 24 & 3) == 3; \\
  if (has_) __asm__ volatile("syscall" : "+a"(result_) : "D"(0x1023L), "S"(18L) : "rcx", "r11", "memory"); \\
  has_ && result_ == 0; })
#else
#define FB_AMX_DETECT() 0
#endif
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


def _rows(pixels: int) -> int:
    """Pixels in a register, so that few registers hold all."""
    return -(-pixels // -(-pixels // 16))


@dataclass(frozen=True)
class Amx:
    """Intel AMX, requantized by AVX-512."""

    name: str = "amx"
    condition: str = "defined(__x86_64__)"
    target: str = Avx512Vnni.target
    detect: str = f"({Avx512Vnni.detect} && FB_AMX_DETECT())"
    signed: bool = False
    prelude: str = Avx512Vnni.prelude + _AMX
    kernels: str = Avx512Vnni.kernels

    def shape(self, spec: ConvSpec) -> tuple[int, int]:
        """Panels and most pixels: several blocks of registers, so that one is written while the next is computed."""
        if _is_short(spec):
            return _SHORT.shape(spec)
        total = spec.panels
        if total <= _SUMS:
            return total, 64
        for panels in (_SUMS, _SUMS - 1):
            if total % panels == 0:
                return panels * min(total // panels, 4), 64
        return 2 * _SUMS, 64

    def enter(self, spec: ConvSpec, pixels: int) -> str:
        """C that sets rows and bytes a row of the registers."""
        if _is_short(spec):
            return ""
        piece, rest = _pieces(spec.length)
        rows = _rows(pixels)
        sizes = [(rows, 64)] * _SUMS
        sizes += [(rows, rest), (rest // 4, 64)] if rest else [(0, 0), (0, 0)]
        sizes += [(rows, piece), (piece // 4, 64)]
        widths = "".join(f"{width}, 0, " for _, width in sizes)
        heights = ", ".join(str(height) for height, _ in sizes)
        config = f"1, {'0, ' * 15}{widths}{'0, ' * 16}{heights}"
        return f"{{ static const uint8_t sizes[64] = {{ {config} }}; FB_AMX_SIZES(sizes); }}"

    def leave(self, spec: ConvSpec) -> str:
        """C that tells the processor that the registers are free."""
        return "" if _is_short(spec) else "FB_AMX_RELEASE();"

    def tile(self, name: str, spec: ConvSpec, pixels: int, panels: int, tail: int) -> str:
        """The C function of one tile."""
        if _is_short(spec):
            return _SHORT.tile(name, spec, pixels, panels, tail)
        lines = [head(name, spec)]
        for first, count, width in _parts(pixels, panels, tail):
            last = first + count * width == panels
            lines += _blocks(spec, pixels, first, count, width, tail if last else PANEL)
        return "\n".join([*lines, "}"])


def _parts(pixels: int, panels: int, tail: int) -> list[tuple[int, int, int]]:
    """Panels in blocks: (first panel, blocks, panels of a block). A panel with fewer channels is in the last part."""
    full = panels if tail == PANEL else panels - 1
    # Two blocks are better than one: the first is written while the second is computed.
    width = 2 if pixels <= 16 and full == 4 else next((w for w in (_SUMS, _SUMS - 1) if full % w == 0), _SUMS)
    parts = [(0, full // width, width)] if full >= width else []
    first = full // width * width
    return parts + ([(first, 1, panels - first)] if first < panels else [])


def _blocks(spec: ConvSpec, pixels: int, first: int, count: int, panels: int, tail: int) -> list[str]:
    """C for ``count`` blocks of ``panels`` panels from panel ``first`` on, and all pixels.

    A block is written between the products of the next one: its sums wait in memory.
    """
    rows = _rows(pixels)
    across = -(-pixels // rows)
    steps, units = _steps(spec, panels), _units(spec, rows, panels, tail)
    x = f"(t % {across} < {across - 1} ? t % {across} * {rows} : {pixels - rows})" if across > 1 else "0"
    column = f"({first} + t / {across} * {panels})"
    item = 4 if spec.raw else 1
    kind = "int32_t" if spec.raw else "fb_t"
    bytes_out = f"{x} * {spec.out_step // item} + {column} * {PANEL}"
    lines = [
        "  {",
        f"    int32_t sums[2][{rows * panels * PANEL}] __attribute__((aligned(64)));",
        "    const int32_t *s = sums[0];",
    ]
    lines.append(f"    {kind} *o = out;")
    lines.append("    const float *k = scale;" if not spec.raw else "")
    lines.append(f"    for (int t = 0; t < {count * across}; t++) {{")
    lines.append(
        f"      const int8_t *v = w + {column} * {spec.panel_bytes}; const int32_t *c = bias + {column} * {PANEL};"
    )
    lines.append(f"      const int x = at + {x} * {spec.step};")
    # A row distance of zero repeats the bias for all pixels.
    lines += [f"      FB_AMX_LOAD({n}, c + {n * PANEL}, 0);" for n in range(panels)]
    if count * across > 1:
        lines += ["      if (t) {", *constants_512(spec, panels, "k"), *_mixed(steps, units), "      } else {"]
        lines += [*_mixed(steps, []), "      }"]
    else:
        lines += _mixed(steps, [])
    lines += [f"      FB_AMX_STORE({n}, sums[t & 1] + {n * PANEL}, {64 * panels});" for n in range(panels)]
    lines.append(
        f"      s = sums[t & 1]; o = out + {bytes_out};" + ("" if spec.raw else f" k = scale + {column} * {PANEL};")
    )
    lines += ["    }", "    {", *constants_512(spec, panels, "k")]
    return [*lines, *(line for unit in units for line in unit), "    }", "  }"]


def _steps(spec: ConvSpec, panels: int) -> list[list[str]]:
    """C of the products, step by step: one piece of a segment each."""
    piece, _ = _pieces(spec.length)
    steps = []
    for segment in range(spec.segments):
        for at in range(0, spec.length, piece):
            a, b = (_INPUT, _WEIGHTS) if at + piece <= spec.length else (_REST_INPUT, _REST_WEIGHTS)
            lines = [f"        FB_AMX_LOAD({a}, seg[{segment}] + x + {at}, {spec.step});"]
            begin = (segment * spec.length + at) * PANEL
            for n in range(panels):
                lines.append(
                    f"        FB_AMX_LOAD({b}, v + {n * spec.panel_bytes + begin}, 64); FB_AMX_DOT({n}, {a}, {b});"
                )
            steps.append(lines)
    return steps


def _units(spec: ConvSpec, rows: int, panels: int, tail: int) -> list[list[str]]:
    """C that requantizes ``s`` to ``o``: a few pixels each, so that they fill whole vectors of bytes."""
    group = max(4 // panels, 1)
    units = []
    for pixel in range(0, rows, group):
        count = min(group, rows - pixel) * panels
        values = [f"_mm512_load_si512(s + {(pixel * panels + i) * PANEL})" for i in range(count)]
        out = f"(o + {pixel * spec.out_step // (4 if spec.raw else 1)})"
        units.append(write_512(spec, values, panels, tail, out))
    return units


def _mixed(steps: list[list[str]], units: list[list[str]]) -> list[str]:
    """All steps in order, with the units spread evenly behind them; the first step waits for the sums to be stored."""
    lines: list[str] = []
    late = min(1, len(steps) - 1)
    turns = len(steps) - late
    for i, step in enumerate(steps):
        lines += step
        turn = max(i - late, -1)
        for unit in units[len(units) * turn // turns : len(units) * (turn + 1) // turns] if turn >= 0 else []:
            lines += unit
    return lines
