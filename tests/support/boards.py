"""Programs for bare Cortex-M boards, compiled by GCC and run by QEMU."""

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_FILES = Path(__file__).parent / "cortex_m"
_COMPILER, _EMULATOR = "arm-none-eabi-gcc", "qemu-system-arm"


@dataclass(frozen=True)
class Board:
    """A board of QEMU: its processor as GCC names it, and the linker script of its memory."""

    name: str
    machine: str
    flags: tuple[str, ...]
    script: str
    ram_bytes: int


M3 = Board("cortex-m3", "mps2-an385", ("-mcpu=cortex-m3",), "mps2.ld", 4 << 20)
M4 = Board("cortex-m4", "mps2-an386", ("-mcpu=cortex-m4", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16"), "mps2.ld", 4 << 20)
M7 = Board("cortex-m7", "mps2-an500", ("-mcpu=cortex-m7", "-mfloat-abi=hard", "-mfpu=fpv5-sp-d16"), "mps2.ld", 4 << 20)
M55 = Board("cortex-m55", "mps3-an547", ("-mcpu=cortex-m55", "-mfloat-abi=hard"), "mps3.ld", 512 << 10)


def missing() -> str:
    """The name of a program that is needed and not installed, or nothing."""
    return next((name for name in (_COMPILER, _EMULATOR) if not shutil.which(name)), "")


def build_for(
    board: Board, sources: Sequence[Path], program: Path, *options: str, ram_bytes: int | None = None
) -> Path:
    """The program of some C files with ``start.c``, in ``ram_bytes`` of RAM; a warning is an error."""
    command = [
        _COMPILER,
        "-O2",
        "-std=c99",
        "-mthumb",
        *board.flags,
        *("-Wall", "-Wextra", "-Werror", "-ffp-contract=off", "-ffunction-sections", "-Wl,--gc-sections"),
        *("-nostartfiles", "--specs=nosys.specs", f"-I{_FILES}", f"-L{_FILES}"),
        *(f"-T{board.script}", f"-Wl,--defsym=RAM_BYTES={ram_bytes or board.ram_bytes}"),
        *options,
        *map(str, sources),
        str(_FILES / "start.c"),
        *("-o", str(program)),
    ]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[:4000]
    return program


def flash_bytes(board: Board, source: Path) -> int:
    """Code and constants of a generated C file as the compiler makes them, without class names."""
    made = source.with_suffix(".o")
    options = ("-O2", "-std=c99", "-mthumb", *board.flags, "-DFIREBOX_NO_CLASSES")
    subprocess.run([_COMPILER, *options, "-c", str(source), "-o", str(made)], check=True)
    size = ["arm-none-eabi-size", str(made)]
    return int(subprocess.run(size, capture_output=True, text=True, check=True).stdout.splitlines()[1].split()[0])


def run_on(board: Board, program: Path, folder: Path) -> str:
    """What the program prints; it finds its files in ``folder``."""
    target = ("-semihosting-config", "enable=on,target=native")
    command = [_EMULATOR, "-M", board.machine, "-nographic", *target, "-kernel", str(program)]
    ran = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert ran.returncode == 0, (ran.returncode, ran.stdout + ran.stderr)
    return ran.stdout + ran.stderr  # where the text of semihosting goes depends on QEMU's options


def run_network(
    board: Board, source: Path, images: int, *, by_rows: bool, ram_bytes: int | None = None
) -> dict[str, int]:
    """Run a generated network on a board: ``source`` is its C file, beside its header, inputs and expected outputs.

    The files are named ``<name>.c``, ``.h``, ``.in`` and ``.want``. Returns how many of ``images`` gave ``equal``
    outputs, and the bytes of the ``arena``, of all ``static`` data with it, and of the deepest ``stack``.
    """
    name, folder = source.stem, source.parent
    macros = {
        "MODEL": f'"{name}.h"',
        "NAME": name,
        "PREFIX": name.upper(),
        "IN": f'"{name}.in"',
        "WANT": f'"{name}.want"',
        "IMAGES": images,
    }
    options = [f"-I{folder}", *(f"-D{key}={value}" for key, value in macros.items())]
    if by_rows:
        options.append("-DBY_ROWS")
    program = folder / f"{name}-{board.name}.elf"
    build_for(board, [source, _FILES / "network.c"], program, *options, ram_bytes=ram_bytes)
    words = run_on(board, program, folder).split()
    return dict(zip(words[::2], map(int, words[1::2]), strict=True))
