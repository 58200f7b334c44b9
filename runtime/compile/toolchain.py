"""The C compiler of this machine, and the instruction set that its processor runs best."""

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import MissingCompilerError, UnsupportedError, UsageError
from ..processor import Processor

# Names of tiles and the features of a processor that they need, the fastest first. Plain C is 30 times slower than any
# other runtime, so it is not among them.
_X86: Mapping[str, tuple[str, ...]] = {
    "amx": ("avx512bw", "avx512_vnni", "amx_int8"),
    "avx512vnni": ("avx512bw", "avx512_vnni"),
    "avxvnni": ("avx2", "avx_vnni"),
    "avx2": ("avx2",),
}
_ARM64: Mapping[str, tuple[str, ...]] = {"neondot": ("asimddp",), "neon": ("asimd",)}

# Sums of products in one rounding would change the integers.
_FLAGS = ("-O3", "-shared", "-fPIC", "-fno-semantic-interposition", "-ffp-contract=off", "-w")
_COMPILERS = ("cc", "gcc", "clang")
# Debian's names.
_INSTALL = "apt-get install gcc libc6-dev"


# How shared libraries begin: ELF, and Mach-O of 64 bits.
_LIBRARIES = (b"\x7fELF", b"\xcf\xfa\xed\xfe")
# Seconds; the largest networks take gcc minutes.
_TIMEOUT = 1800


@dataclass(frozen=True)
class Compiler:
    """A C compiler: the ``command`` that starts it, and what changes when it is replaced (``identity``)."""

    command: tuple[str, ...]
    identity: str

    @property
    def name(self) -> str:
        """How people call it."""
        return Path(self.command[0]).name

    def version(self) -> str:
        """Name and version, such as ``gcc (Debian 12.2.0-14) 12.2.0``. Raises ``MissingCompilerError``."""
        return (self._run(["--version"]).splitlines() or [self.name])[0]

    def compile(self, source: Path, library: Path, options: Sequence[str] = ()) -> None:
        """Compile a C file to a shared library. Raises ``MissingCompilerError`` with the compiler's first error."""
        self._run([*flags(), *options, str(source), "-o", str(library)])
        found = library.read_bytes()[:4] if library.is_file() else b""
        if found not in _LIBRARIES:
            what = "no shared library" if found else "nothing"
            raise MissingCompilerError(
                f"the C compiler {self.name} wrote {what}; set CC to another one, or run: {_INSTALL}"
            )

    def _run(self, arguments: Sequence[str]) -> str:
        import subprocess

        try:
            # Messages are in English on every machine, so that the error is found in them.
            environment = os.environ | {"LC_ALL": "C"}
            ran = subprocess.run(
                [*self.command, *arguments], capture_output=True, text=True, env=environment, timeout=_TIMEOUT
            )
        except subprocess.TimeoutExpired as error:
            raise MissingCompilerError(
                f"the C compiler {self.name} did not finish in {_TIMEOUT} s; set CC to another one"
            ) from error
        except OSError as error:
            raise MissingCompilerError(f"the C compiler {self.name} does not start: {error.strerror}") from error
        if ran.returncode:
            lines = [line for line in ran.stderr.splitlines() if line.strip()] or [f"exit code {ran.returncode}"]
            line = next((line for line in lines if "error" in line), lines[0])
            raise MissingCompilerError(
                f"the C compiler {self.name} failed: {line.strip()}; set CC to another one, or run: {_INSTALL}"
            )
        return ran.stdout


def find_compiler() -> Compiler:
    """The compiler that ``$CC`` names, else the first of cc, gcc and clang. Raises ``MissingCompilerError``."""
    import shlex
    from shutil import which

    given = os.environ.get("CC")
    try:
        wanted = [shlex.split(given)] if given else [[name] for name in _COMPILERS]
    except ValueError as error:
        raise UsageError(f"CC is {given!r}: {error}") from error
    for command in wanted:
        path = which(command[0]) if command else None
        if path:
            file = Path(path).resolve()
            facts = file.stat()
            return Compiler((path, *command[1:]), f"{file} {facts.st_size} {facts.st_mtime_ns} {command[1:]}")
    missing = f"CC is {given!r}, which is not installed" if given else "no C compiler"
    raise MissingCompilerError(f"{missing}; install one: {_INSTALL}")


def flags() -> tuple[str, ...]:
    """The options of every library. The C file chooses the processor's features itself."""
    # gcc's first scheduling pass costs 10 % of the speed on this architecture.
    return (*_FLAGS, "-fno-schedule-insns") if platform.machine() in ("aarch64", "arm64") else _FLAGS


def best_isa(processor: Processor) -> str:
    """The name of the fastest instruction set of a processor. Raises ``UnsupportedError`` if there is only plain C."""
    known = _X86 if processor.is_x86 else _ARM64
    for name, needed in known.items():
        if set(needed) <= set(processor.features) and (name != "amx" or _permits_amx()):
            return name
    names = ", ".join((*_X86, *_ARM64))
    raise UnsupportedError(
        f"{processor} has none of the instruction sets {names}, and plain C is slow; use another backend"
    )


def _permits_amx() -> bool:
    """True if Linux lets this process use the registers of AMX, which a process has to ask for."""
    import ctypes

    arch_prctl, request_permission, tile_data = 158, 0x1023, 18
    try:
        return ctypes.CDLL(None).syscall(arch_prctl, request_permission, tile_data) == 0
    except (OSError, AttributeError):
        return False
