"""Options that several commands share."""

from collections.abc import Callable, Iterable
from functools import cached_property, wraps
from pathlib import Path
from typing import Any

import click

from ..errors import UsageError
from ..inference.installed import BACKENDS, NATIVE


class _TargetChoice(click.Choice[str]):
    """A choice among targets, looked up when needed: their modules load numpy, which ``firebox --help`` must not."""

    def __init__(self, names: Callable[[], Iterable[str]]):
        self._names = names
        self.case_sensitive = True

    @cached_property
    def choices(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Names of targets."""
        return tuple(self._names())


def _targets() -> list[str]:
    from ..memory import TARGETS

    return list(TARGETS)


def _fit_targets() -> list[str]:
    from ..memory import TARGETS

    return [target.name for target in TARGETS.values() if target.plans_all]


model_argument = click.argument("model", type=click.Path(path_type=Path))
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
backend_option = click.option(
    "--backend",
    type=click.Choice(("auto", *BACKENDS, NATIVE)),
    default="auto",
    show_default=True,
    help="Runtime to use.",
)
threads_option = click.option("--threads", type=int, default=1, show_default=True, help="Number of threads.")
seconds_option = click.option(
    "--seconds", type=float, default=10.0, show_default=True, help="Time limit of the measurement."
)
target_option = click.option(
    "--target",
    type=_TargetChoice(_targets),
    help="Runtime to plan for.  [default: tflm, or static if tflite-micro has no kernels for MODEL]",
)
judging_targets_option = click.option(
    "--target",
    "targets",
    multiple=True,
    type=_TargetChoice(_targets),
    help="Runtime or compiler to judge MODEL for; repeat for several.  [default: tflm and c]",
)
fit_target_option = click.option(
    "--target", type=_TargetChoice(_fit_targets), default="tflm", show_default=True, help="Runtime to fit for."
)

_SRAM = click.option("--sram", help="SRAM budget, such as 256KiB or 1MiB.")
_FLASH = click.option("--flash", help="Flash budget, such as 1MiB.  [default: the device's; not judged without one]")
_RESERVE = click.option(
    "--reserve", help="SRAM kept for the stack and other firmware, such as 16KiB.  [default: the device's, else 0]"
)
_DEVICE = click.option("--device", help="Use a device's memory as the budget; `firebox devices` lists devices.")
devices_option = click.option(
    "--devices", type=click.Path(path_type=Path), help="TOML file with your own devices (also $FIREBOX_DEVICES)."
)


def budget_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a budget; ``command`` gets ``budget``, a ``Budget``, or ``None`` without one."""

    @wraps(command)
    def with_budget(
        *args: Any,
        sram: str | None,
        flash: str | None,
        reserve: str | None,
        device: str | None,
        devices: Path | None,
        **options: Any,
    ) -> Any:
        from ..memory import budget

        return command(*args, budget=budget(sram, device, devices, flash, reserve), **options)

    return _SRAM(_FLASH(_RESERVE(_DEVICE(devices_option(with_budget)))))


def required_budget_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of ``budget_options``; without a budget the command ends with a ``UsageError``."""

    @wraps(command)
    def with_budget(*args: Any, budget: Any, **options: Any) -> Any:
        return command(*args, budget=_required(budget), **options)

    return budget_options(with_budget)


def required_sram_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--sram``, ``--device`` and ``--devices``; ``command`` gets ``sram_bytes``, without a reserve.

    Without a budget the command ends with a ``UsageError``.
    """

    @wraps(command)
    def with_sram(*args: Any, sram: str | None, device: str | None, devices: Path | None, **options: Any) -> Any:
        from ..memory import budget

        return command(*args, sram_bytes=_required(budget(sram, device, devices)).sram_bytes, **options)

    return _SRAM(_DEVICE(devices_option(with_sram)))


def _required(budget: Any) -> Any:
    if budget is None:
        name = click.get_current_context().info_name
        raise UsageError(f"{name} needs a budget; give --sram 256KiB, or --device (`firebox devices` lists names)")
    return budget
