"""The processor of this machine: architecture, model, and the instruction sets that select int8 kernels."""

import os
import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path

# Names as in Linux's /proc/cpuinfo.
FEATURES = (
    "avx2", "avx512bw", "avx_vnni", "avx512_vnni", "amx_int8",
    "asimd", "asimddp", "i8mm", "sve", "sve2",
)  # fmt: skip
_X86 = ("x86_64", "AMD64", "i386", "i686")
# numpy queries the processor itself (CPUID), so its list is correct under emulation, unlike /proc/cpuinfo.
_FROM_NUMPY = {
    "avx2": ("AVX2", "X86_V3"),
    "avx512bw": ("AVX512BW", "AVX512_SKX", "X86_V4"),
    "avx512_vnni": ("AVX512VNNI", "AVX512_CLX", "AVX512_ICL", "AVX512_SPR"),
    "asimd": ("ASIMD",),
    "asimddp": ("ASIMDDP",),
    "sve": ("SVE",),
}
# A list such as "avx2,avx512_vnni" in this variable replaces the detected features.
VARIABLE = "FIREBOX_CPU_FEATURES"


@dataclass(frozen=True)
class Processor:
    """``architecture`` as in ``platform.machine()``, ``model`` as the system names it (or ""), the supported
    ``features`` among ``FEATURES``, and whether the user overrode them (``FIREBOX_CPU_FEATURES``)."""

    architecture: str
    model: str
    features: tuple[str, ...]
    overridden: bool = False

    @property
    def is_x86(self) -> bool:
        """True if the processor runs x86 kernels."""
        return self.architecture in _X86

    def __str__(self) -> str:
        return f"{self.model or self.architecture} ({', '.join(self.features) or 'no int8 instructions'})"


@cache
def this_processor() -> Processor:
    """The processor of this process, detected once."""
    entries = _cpuinfo()
    found = _features(entries)
    given = os.environ.get(VARIABLE)
    if given is not None:
        found = {name.strip() for name in given.split(",")}
    model = entries.get("model name") or platform.processor()
    return Processor(
        platform.machine(), model, tuple(name for name in FEATURES if name in found), overridden=given is not None
    )


def _features(entries: dict[str, str]) -> set[str]:
    """The features that the system lists, corrected by those that numpy detects."""
    listed = set((entries.get("flags") or entries.get("Features") or "").split())
    detected = _detected_by_numpy()
    for name, keys in _FROM_NUMPY.items():
        known = [detected[key] for key in keys if key in detected]
        if known:
            listed = listed | {name} if any(known) else listed - {name}
    if "avx2" not in listed:
        # VNNI and AMX require AVX2; a list with them and without AVX2 describes another processor.
        listed -= {"avx_vnni", "avx512_vnni", "amx_int8"}
    return listed


def _detected_by_numpy() -> dict[str, bool]:
    try:
        from numpy._core._multiarray_umath import __cpu_features__ as found  # pyright: ignore
    except ImportError:
        from numpy.core._multiarray_umath import __cpu_features__ as found  # pyright: ignore
    return dict(found)


def _cpuinfo() -> dict[str, str]:
    """The entries of the first processor in /proc/cpuinfo; empty on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in lines)
    return {key.strip(): value.strip() for key, _, value in pairs}
