"""The verdict on a budget: SRAM with a reserve, and flash where the budget names it."""

from dataclasses import dataclass
from typing import Any, Literal

from ..errors import UsageError
from ..units import format_size
from .account import MemoryLine, Source

FlashPart = Literal["file", "weights", "weights and code"]

_FLASH_TEXTS: dict[FlashPart, str] = {
    "file": "file alone, without the runtime's code",
    "weights": "weights alone, without code",
    "weights and code": "weights and code",
}
_EXIT_CODES = {True: 0, False: 3, None: 4}


@dataclass(frozen=True)
class Budget:
    """The memory that a network may take, in bytes.

    ``reserve_bytes`` of the ``sram_bytes`` stay free for the stack and the rest of the firmware. Flash is not judged if
    ``flash_bytes`` is ``None``. Raises ``UsageError`` for a reserve that is negative or leaves no SRAM.
    """

    sram_bytes: int
    flash_bytes: int | None = None
    reserve_bytes: int = 0

    def __post_init__(self) -> None:
        if self.reserve_bytes and not 0 < self.reserve_bytes < self.sram_bytes:
            raise UsageError(
                f"a reserve of {self.reserve_bytes:,} bytes leaves nothing of {self.sram_bytes:,} bytes of SRAM; "
                "choose a reserve below the SRAM"
            )

    @property
    def available_bytes(self) -> int:
        """SRAM without the reserve."""
        return self.sram_bytes - self.reserve_bytes

    @property
    def is_whole(self) -> bool:
        """True if the budget describes all memory of a device, so that an unknown demand leaves a verdict undecided.

        A size of SRAM alone is judged by what is known.
        """
        return self.flash_bytes is not None or self.reserve_bytes > 0

    def account(self) -> tuple[MemoryLine, ...]:
        """The reserve as a line of an account, if there is one."""
        return (MemoryLine("reserve", self.reserve_bytes, "planned"),) if self.reserve_bytes else ()

    def text(self) -> str:
        """The SRAM in words: ``512.0 KiB``, or ``512.0 KiB less a reserve of 16.0 KiB``."""
        reserve = f" less a reserve of {format_size(self.reserve_bytes)}" if self.reserve_bytes else ""
        return format_size(self.sram_bytes) + reserve


def as_budget(budget: Budget | int) -> Budget:
    """A budget; a number is a budget of that many bytes of SRAM."""
    return budget if isinstance(budget, Budget) else Budget(budget)


@dataclass(frozen=True)
class FlashDemand:
    """The bytes that a network takes in flash, and what they are.

    The code of the runtime is unknown: neither ``file`` nor ``weights`` includes it.
    """

    nbytes: int
    about: FlashPart

    @property
    def source(self) -> Source:
        """A file has been measured; weights and code are planned."""
        return "measured" if self.about == "file" else "planned"

    @property
    def has_code(self) -> bool:
        """True if the bytes include the code that runs the network."""
        return self.about == "weights and code"

    def text(self) -> str:
        """What the bytes are, in words: ``file alone, without the runtime's code``."""
        return _FLASH_TEXTS[self.about]


@dataclass(frozen=True)
class Verdict:
    """A verdict on a budget, by planned or measured figures (``arena_source``).

    In SRAM it judges ``total_bytes``, the whole demand. If that is unknown it judges the arena alone: the scratch
    memory of kernels and the overhead of the runtime are not included. Where the budget names flash, it judges the
    ``flash`` demand: the file or the weights, without the runtime's code unless the target plans that too.
    """

    budget: Budget
    arena_bytes: int
    arena_source: Source = "planned"
    total_bytes: int | None = None
    flash: FlashDemand | None = None

    @property
    def sram_bytes(self) -> int:
        """The SRAM of the budget, with its reserve."""
        return self.budget.sram_bytes

    @property
    def about(self) -> Literal["total", "arena"]:
        """The figure that is judged in SRAM."""
        return "arena" if self.total_bytes is None else "total"

    @property
    def needed_bytes(self) -> int:
        """The figure that is judged in SRAM, without the reserve."""
        return self.arena_bytes if self.total_bytes is None else self.total_bytes

    @property
    def margin_bytes(self) -> int:
        """Bytes of SRAM to spare beside the reserve; negative if the budget is too small."""
        return self.budget.available_bytes - self.needed_bytes

    @property
    def flash_margin_bytes(self) -> int | None:
        """Bytes of flash to spare; ``None`` if the budget or the demand is unknown."""
        if self.budget.flash_bytes is None or self.flash is None:
            return None
        return self.budget.flash_bytes - self.flash.nbytes

    @property
    def sram_fits(self) -> bool | None:
        """True if the demand and the reserve are within the SRAM; ``None`` if an unknown demand decides it."""
        if self.margin_bytes < 0:
            return False
        return None if self.total_bytes is None and self.budget.is_whole else True

    @property
    def flash_fits(self) -> bool | None:
        """True if the demand is within the flash or the budget has none; ``None`` if the demand is unknown."""
        if self.budget.flash_bytes is None:
            return True
        return None if self.flash_margin_bytes is None else self.flash_margin_bytes >= 0

    @property
    def fits(self) -> bool | None:
        """False if SRAM or flash is certainly too small, ``None`` if the verdict is undecided, else true."""
        parts = (self.sram_fits, self.flash_fits)
        if False in parts:
            return False
        return None if None in parts else True

    @property
    def exit_code(self) -> int:
        """0 if it fits, 3 if not, 4 if that is undecided."""
        return _EXIT_CODES[self.fits]

    def text(self) -> str:
        """The verdict in words: ``fits 256.0 KiB, 12.3 KiB to spare``. The part that decides it comes first."""
        parts = [(self.sram_fits, self.sram_text()), (self.flash_fits, self.flash_text())]
        order = (False, None, True)
        return "; ".join(text for _, text in sorted(parts, key=lambda part: order.index(part[0])) if text)

    def sram_text(self) -> str:
        """The verdict on SRAM in words."""
        size = format_size(self.sram_bytes) + (" of SRAM" if self.budget.flash_bytes is not None else "")
        reserve = f" beside a reserve of {format_size(self.budget.reserve_bytes)}" if self.budget.reserve_bytes else ""
        alone = " (arena alone)" if self.total_bytes is None else ""
        if self.sram_fits is None:
            free = f"{format_size(self.margin_bytes)} to spare{reserve}"
            return f"undecided: the arena alone fits {size}, {free}; the other demand is unknown"
        return _words(self.sram_fits, size, self.margin_bytes) + reserve + alone

    def flash_text(self) -> str:
        """The verdict on flash in words; empty if the budget has none."""
        if self.budget.flash_bytes is None:
            return ""
        size = f"{format_size(self.budget.flash_bytes)} of flash"
        if self.flash is None:
            return f"undecided: the demand for {size} is unknown"
        margin = self.budget.flash_bytes - self.flash.nbytes
        return f"{_words(margin >= 0, size, margin)} ({self.flash.text()})"

    def to_json(self) -> dict[str, Any]:
        """Figures by name; names carry the unit. ``fits`` is ``None`` if the verdict is undecided."""
        return {
            "sram_bytes": self.sram_bytes,
            "reserve_bytes": self.budget.reserve_bytes,
            "flash_bytes": self.budget.flash_bytes,
            "arena_bytes": self.arena_bytes,
            "arena_source": self.arena_source,
            "total_bytes": self.total_bytes,
            "flash_needed_bytes": self.flash.nbytes if self.flash else None,
            "flash_about": self.flash.about if self.flash else None,
            "about": self.about,
            "fits": self.fits,
            "margin_bytes": self.margin_bytes,
            "flash_margin_bytes": self.flash_margin_bytes,
        }


def _words(fits: bool, size: str, margin: int) -> str:
    text = format_size(abs(margin))
    return f"fits {size}, {text} to spare" if fits else f"does not fit {size}, {text} too much"
