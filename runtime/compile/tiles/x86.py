"""Tiles for x86-64: AVX-512 VNNI, AVX-VNNI, AVX2."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from .spec import PANEL, ConvSpec

# gcc 12 copies and spills the accumulators of `_mm512_dpbusd_epi32`, so the one instruction is inline assembly.
PRELUDE = """\
#include <immintrin.h>
"""

_DOT_512 = """\
#define FB_DOT_512(c, x, w) __asm__("vpdpbusd {%2, %1, %0|%0, %1, %2}" : "+v"(c) : "v"(x), "v"(w))
"""

_DOT_256 = """\
#define FB_DOT_256(c, x, w) __asm__("%{vex%} vpdpbusd {%2, %1, %0|%0, %1, %2}" : "+x"(c) : "x"(x), "x"(w))
"""

# gcc 12 needs twice the time for the portable kernel.
_ADD_512 = """\
FB_NOINLINE static void fb_add(fb_t *out, int out_step, const fb_t *a, int a_step, const fb_t *b, int b_step, int n,
                               int c, float a_scale, float b_scale, int a_zero, int b_zero, int zero, int low,
                               int high) {
  const __m512 least = _mm512_set1_ps((float)(low - zero)), most = _mm512_set1_ps((float)(high - zero));
  for (int x = 0; x < n; x++, out += out_step, a += a_step, b += b_step)
    for (int i = 0; i < c; i += 16) {
      const __mmask16 used = (__mmask16)(c - i < 16 ? (1 << (c - i)) - 1 : 0xffff);
      const __m512i p = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(used, a + i));
      const __m512i q = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(used, b + i));
      const __m512 r = _mm512_cvtepi32_ps(_mm512_sub_epi32(p, _mm512_set1_epi32(a_zero)));
      const __m512 s = _mm512_cvtepi32_ps(_mm512_sub_epi32(q, _mm512_set1_epi32(b_zero)));
      __m512 sum = _mm512_add_ps(_mm512_mul_ps(r, _mm512_set1_ps(a_scale)), _mm512_mul_ps(s, _mm512_set1_ps(b_scale)));
      sum = _mm512_min_ps(_mm512_max_ps(sum, least), most);
      const __m512i v = _mm512_add_epi32(_mm512_cvtps_epi32(sum), _mm512_set1_epi32(zero + FB_SHIFT));
      _mm_mask_storeu_epi8(out + i, used, _mm512_cvtepi32_epi8(v));
    }
}
"""


def head(name: str, spec: ConvSpec) -> str:
    """The first line of a tile."""
    out = "int32_t" if spec.raw else "fb_t"
    return (
        f"static FB_NOINLINE void {name}(const fb_t *const *seg, int at, const int8_t *w,"
        f" const float *scale, const int32_t *bias, {out} *out) {{" + (" (void)scale;" if spec.raw else "")
    )


def _runs(offsets: Sequence[int], most: int) -> list[tuple[int, int]]:
    """Ranges of at most ``most`` entries whose offsets lie one panel apart: (first, count), counts powers of two."""
    runs: list[tuple[int, int]] = []
    at = 0
    while at < len(offsets):
        count = most
        while at % count or offsets[at : at + count] != [offsets[at] + PANEL * i for i in range(count)]:
            count //= 2
        runs.append((at, count))
        at += count
    return runs


@dataclass(frozen=True)
class Avx512Vnni:
    """AVX-512 with ``vpdpbusd``: 64 multiply-accumulates an instruction."""

    name: str = "avx512vnni"
    condition: str = "defined(__x86_64__)"
    target: str = "avx2,avx512f,avx512bw,avx512vl,avx512vnni"
    detect: str = (
        '(__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")'
        ' && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni"))'
    )
    signed: bool = False
    prelude: str = PRELUDE + _DOT_512
    kernels: str = _ADD_512

    def shape(self, spec: ConvSpec) -> tuple[int, int]:
        """Panels and most pixels: 26 to 28 of 32 registers are accumulators."""
        if spec.panels == 1:
            return 1, 28
        if spec.panels == 3:
            return 3, 9
        return 2, 13

    def tile(self, name: str, spec: ConvSpec, pixels: int, panels: int, tail: int) -> str:
        """The C function of one tile."""
        lines = [head(name, spec)]
        lines += [f"  const __m512i b{n} = _mm512_loadu_si512(bias + {n * PANEL});" for n in range(panels)]
        names = [f"c{m}_{n} = b{n}" for m, n in product(range(pixels), range(panels))]
        lines.append(f"  __m512i {', '.join(names)};")
        lines.append(f"  for (int r = 0; r < {spec.segments}; r++) {{ const fb_t *a = seg[r] + at;")
        lines.append(f"    for (int k = 0; k < {spec.length}; k += 4, w += 64) {{ __m512i x;")
        for n in range(panels):
            lines.append(f"      const __m512i w{n} = _mm512_loadu_si512(w + {n * spec.panel_bytes});")
        for m in range(pixels):
            dots = " ".join(f"FB_DOT_512(c{m}_{n}, x, w{n});" for n in range(panels))
            lines.append(f"      x = _mm512_set1_epi32(fb_load4(a + k + {m * spec.step})); {dots}")
        lines.append("    }\n  }")
        lines += constants_512(spec, panels)
        lines += write_512(spec, [f"c{m}_{n}" for m, n in product(range(pixels), range(panels))], panels, tail)
        return "\n".join([*lines, "}"])


def constants_512(spec: ConvSpec, panels: int, scale: str = "scale") -> list[str]:
    """C that loads what `write_512` needs."""
    if spec.raw:
        return []
    lines = [f"  const __m512 s{n} = _mm512_loadu_ps({scale} + {n * PANEL});" for n in range(panels)]
    # Packing works in quarters of a vector.
    lines.append("  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);")
    return lines


def write_512(spec: ConvSpec, sums: Sequence[str], panels: int, tail: int, out: str = "out") -> list[str]:
    """C that writes the int32 vectors ``sums`` from ``out`` on, pixel by pixel, ``panels`` of them for each."""
    item = 4 if spec.raw else 1
    offsets = [m * spec.out_step + n * PANEL * item for m in range(len(sums) // panels) for n in range(panels)]
    partial = [n == panels - 1 and tail < PANEL for _ in range(len(sums) // panels) for n in range(panels)]
    mask = f"0x{(1 << tail) - 1:x}"
    lines: list[str] = []
    if spec.raw:
        for value, offset, part in zip(sums, offsets, partial, strict=True):
            store = (
                f"mask_storeu_epi32((char *){out} + {offset}, {mask}, "
                if part
                else f"storeu_si512((char *){out} + {offset}, "
            )
            lines.append(f"  _mm512_{store}{value});")
        return lines
    for i in range(0, len(sums), 4):
        lines += _pack_512(spec, [(value, (i + j) % panels) for j, value in enumerate(sums[i : i + 4])])
        # What lies behind a partial panel belongs to others: it is a run of its own.
        places = [-1 if part else offset for offset, part in zip(offsets, partial, strict=True)]
        for first, count in _runs(places[i : i + 4], 4):
            lines.append(
                "    " + _store_512(f"{out} + {offsets[i + first]}", first, count, mask if partial[i + first] else "")
            )
        lines.append("  }")
    return lines


def _pack_512(spec: ConvSpec, sums: Sequence[tuple[str, int]]) -> list[str]:
    """C that opens a block and requantizes up to four vectors of 16 sums into the 64 bytes of ``t``."""
    scaled = [f"_mm512_mul_ps(_mm512_cvtepi32_ps({value}), s{n})" for value, n in sums]
    if spec.clamps:  # a conversion that overflows upwards would give the smallest integer
        scaled = [f"_mm512_min_ps({value}, _mm512_set1_ps({float(spec.high - spec.zero_point)}f))" for value in scaled]
    q = [f"_mm512_cvtps_epi32({value})" for value in scaled]
    lines = [f"  {'  ' if j else '{ '}const __m512i q{j} = {value};" for j, value in enumerate(q)]
    first = f"_mm512_packs_epi32(q0, {'q1' if len(q) > 1 else 'q0'})"
    second = f"_mm512_packs_epi32(q2, {'q3' if len(q) > 3 else 'q2'})" if len(q) > 2 else ""
    shift = spec.zero_point + 128
    if shift:
        first = f"_mm512_adds_epi16({first}, _mm512_set1_epi16({shift}))"
        second = f"_mm512_adds_epi16({second}, _mm512_set1_epi16({shift}))" if second else ""
    lines.append(f"    const __m512i h0 = {first}, h1 = {second or 'h0'};")
    value = "_mm512_packus_epi16(h0, h1)"
    if spec.low > -128:
        value = f"_mm512_max_epu8({value}, _mm512_set1_epi8((char){spec.low + 128}))"
    if spec.high < 127:
        value = f"_mm512_min_epu8({value}, _mm512_set1_epi8((char){spec.high + 128}))"
    lines.append(f"    const __m512i t = _mm512_permutexvar_epi32(order, {value});")
    return lines


def _store_512(at: str, first: int, count: int, mask: str) -> str:
    """C that stores ``count`` (1, 2, 4) quarters of ``t`` from quarter ``first`` on."""
    if count == 4:
        return f"_mm512_storeu_si512({at}, t);"
    if count == 2:
        half = f"_mm512_extracti64x4_epi64(t, {first // 2})" if first else "_mm512_castsi512_si256(t)"
        return f"_mm256_storeu_si256((__m256i *)({at}), {half});"
    quarter = f"_mm512_extracti32x4_epi32(t, {first})" if first else "_mm512_castsi512_si128(t)"
    if mask:
        return f"_mm_mask_storeu_epi8({at}, {mask}, {quarter});"
    return f"_mm_storeu_si128((__m128i *)({at}), {quarter});"


@dataclass(frozen=True)
class Avx2:
    """AVX2 without VNNI: 16-bit pairs by ``vpmaddwd``; ``vpmaddubsw`` would saturate."""

    name: str = "avx2"
    condition: str = "defined(__x86_64__)"
    target: str = "avx2"
    detect: str = '__builtin_cpu_supports("avx2")'
    signed: bool = False
    prelude: str = PRELUDE

    def shape(self, spec: ConvSpec) -> tuple[int, int]:
        """Panels and most pixels: 12 of 16 registers are accumulators."""
        del spec
        return 1, 3

    def tile(self, name: str, spec: ConvSpec, pixels: int, panels: int, tail: int) -> str:
        """The C function of one tile. A sum is kept in two parts until the end."""
        assert panels == 1
        lines = [head(name, spec)]
        names = [f"c{m}_{n} = _mm256_setzero_si256()" for m, n in product(range(pixels), range(4))]
        lines.append(f"  __m256i {', '.join(names)};")
        lines.append(f"  for (int r = 0; r < {spec.segments}; r++) {{ const fb_t *a = seg[r] + at;")
        lines.append(f"    for (int k = 0; k < {spec.length}; k += 4, w += 64) {{ __m256i v;")
        for m in range(pixels):
            lines.append(
                f"      const __m256i x{m} = _mm256_cvtepu8_epi16(_mm_set1_epi32(fb_load4(a + k + {m * spec.step})));"
            )
        for n in range(4):
            lines.append(f"      v = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(w + {16 * n})));")
            for m in range(pixels):
                lines.append(f"      c{m}_{n} = _mm256_add_epi32(c{m}_{n}, _mm256_madd_epi16(x{m}, v));")
        lines.append("    }\n  }")
        for half in range(2):
            lines.append(f"  const __m256i b{half} = _mm256_loadu_si256((const __m256i *)(bias + {8 * half}));")
            for m in range(pixels):
                pairs = f"_mm256_hadd_epi32(c{m}_{2 * half}, c{m}_{2 * half + 1})"
                lines.append(
                    f"  const __m256i q{m}_{half} = _mm256_add_epi32(b{half}, _mm256_permute4x64_epi64({pairs}, 0xD8));"
                )
        lines += _store_256(spec, pixels, tail)
        return "\n".join([*lines, "}"])


@dataclass(frozen=True)
class AvxVnni:
    """AVX-VNNI: ``vpdpbusd`` on processors without AVX-512."""

    name: str = "avxvnni"
    condition: str = "defined(__x86_64__)"
    target: str = "avx2"
    # Assemblers learned the instruction before compilers did: no pragma and no builtin for the feature is needed.
    detect: str = (
        '(__builtin_cpu_supports("avx2") && __extension__({ unsigned a, b, c, d;'
        " __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1); }))"
    )
    signed: bool = False
    prelude: str = "#include <cpuid.h>\n" + PRELUDE + _DOT_256

    def shape(self, spec: ConvSpec) -> tuple[int, int]:
        """Panels and most pixels: 12 of 16 registers are accumulators."""
        del spec
        return 1, 6

    def tile(self, name: str, spec: ConvSpec, pixels: int, panels: int, tail: int) -> str:
        """The C function of one tile."""
        assert panels == 1
        lines = [head(name, spec)]
        for half in range(2):
            lines.append(f"  const __m256i b{half} = _mm256_loadu_si256((const __m256i *)(bias + {8 * half}));")
        names = [f"q{m}_{half} = b{half}" for m, half in product(range(pixels), range(2))]
        lines.append(f"  __m256i {', '.join(names)};")
        lines.append(f"  for (int r = 0; r < {spec.segments}; r++) {{ const fb_t *a = seg[r] + at;")
        lines.append(f"    for (int k = 0; k < {spec.length}; k += 4, w += 64) {{ __m256i x;")
        for half in range(2):
            lines.append(f"      const __m256i w{half} = _mm256_loadu_si256((const __m256i *)(w + {32 * half}));")
        for m in range(pixels):
            dots = " ".join(f"FB_DOT_256(q{m}_{half}, x, w{half});" for half in range(2))
            lines.append(f"      x = _mm256_set1_epi32(fb_load4(a + k + {m * spec.step})); {dots}")
        lines.append("    }\n  }")
        lines += _store_256(spec, pixels, tail)
        return "\n".join([*lines, "}"])


def _store_256(spec: ConvSpec, pixels: int, tail: int) -> list[str]:
    """C that writes the sums ``q{pixel}_{half}`` of one panel."""
    lines: list[str] = []
    if not spec.raw:
        lines += [f"  const __m256 s{half} = _mm256_loadu_ps(scale + {8 * half});" for half in range(2)]
    used = 4 * tail if spec.raw else tail
    for m in range(pixels):
        at = f"(char *)out + {m * spec.out_step}"
        lines.append(f"  {{ char *o = {at};" if tail == PANEL else f"  {{ char o[{64 if spec.raw else 16}];")
        if spec.raw:
            lines += [f"    _mm256_storeu_si256((__m256i *)(o + {32 * h}), q{m}_{h});" for h in range(2)]
        else:
            lines += _pack_256(spec, [f"q{m}_{h}" for h in range(2)])
        lines.append("  }" if tail == PANEL else f"    memcpy({at}, o, {used}); }}")
    return lines


def _pack_256(spec: ConvSpec, sums: Sequence[str]) -> list[str]:
    """C that requantizes two vectors of 8 sums into 16 bytes at ``o``."""
    scaled = [f"_mm256_mul_ps(_mm256_cvtepi32_ps({value}), s{half})" for half, value in enumerate(sums)]
    if spec.clamps:
        scaled = [f"_mm256_min_ps({value}, _mm256_set1_ps({float(spec.high - spec.zero_point)}f))" for value in scaled]
    first, second = (f"_mm256_cvtps_epi32({value})" for value in scaled)
    words = f"_mm256_packs_epi32({first}, {second})"
    if spec.zero_point + 128:
        words = f"_mm256_adds_epi16({words}, _mm256_set1_epi16({spec.zero_point + 128}))"
    value = "_mm_packus_epi16(_mm256_castsi256_si128(p), _mm256_extracti128_si256(p, 1))"
    if spec.low > -128:
        value = f"_mm_max_epu8({value}, _mm_set1_epi8((char){spec.low + 128}))"
    if spec.high < 127:
        value = f"_mm_min_epu8({value}, _mm_set1_epi8((char){spec.high + 128}))"
    # Packing works in halves of 128 bits: 4 values of the first vector, then 4 of the second.
    return [
        f"    const __m256i p = _mm256_permute4x64_epi64({words}, 0xD8);",
        f"    _mm_storeu_si128((__m128i *)o, {value});",
    ]
