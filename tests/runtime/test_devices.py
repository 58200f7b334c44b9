import contextlib
import json
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firebox.runtime.errors import FireboxError, FormatError, UsageError
from firebox.runtime.memory import Budget, Device, budget, known_devices
from firebox.runtime.memory.devices import KINDS, PRESETS, find_device, read_devices

MINE = """
[mine]
name = "My board"
kind = "microcontroller"
memory = "SRAM"
sram = "96KiB"
flash = 1000000
source = "my own notes, page 1"
"""


@pytest.fixture(autouse=True)
def no_user_devices(monkeypatch):
    monkeypatch.delenv("FIREBOX_DEVICES", raising=False)


@pytest.fixture
def mine(tmp_path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(MINE)
    return path


@pytest.mark.parametrize("device", read_devices(PRESETS), ids=lambda device: device.id)
def test_every_preset_can_be_a_budget_and_has_a_source(device):
    assert budget(None, device.id) == budget(None, device.id.upper()) == device.budget
    assert device.budget == Budget(device.sram_bytes, device.flash_bytes, device.reserve_bytes)
    assert 64 * 1024 <= device.sram_bytes <= 16 * 1024**2
    assert device.sram_bytes % 1024 == 0
    assert len(device.source) > 20
    assert "http" in device.source or "Datasheet" in device.source or "DS1" in device.source
    assert (device.flash_bytes is None) or device.kind == "microcontroller"
    assert device.reserve_bytes == (16 * 1024 if device.kind == "microcontroller" else 0)


def test_the_presets_cover_every_kind():
    assert {device.kind for device in known_devices().values()} == set(KINDS)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("stm32h743", Budget(524_288, 2**21, 16_384)),
        ("raspberry-pi-4", Budget(1_048_576)),
        ("cortex-a55", Budget(131_072)),
    ],
)
def test_sizes_of_well_known_devices(name, expected):
    assert budget(None, name) == expected


def test_a_budget_is_a_size_or_a_device():
    assert budget("256KiB", None) == Budget(262_144)
    assert budget("256KiB", None, flash="1MiB", reserve="8KiB") == Budget(262_144, 2**20, 8192)
    assert budget(None, "stm32h743", flash="8MiB", reserve="0") == Budget(524_288, 2**23)
    assert budget(None, None) is None
    for options in ({"flash": "1MiB"}, {"reserve": "1KiB"}):
        with pytest.raises(UsageError, match="has no effect without SRAM; pass --sram SIZE or --device NAME"):
            budget(None, None, **options)
    for reserve in ("256KiB", "1MiB"):
        with pytest.raises(UsageError, match="leaves nothing of 262,144 bytes of SRAM"):
            budget("256KiB", None, reserve=reserve)
    with pytest.raises(UsageError, match="size '-1'"):
        budget("256KiB", None, reserve="-1")
    with pytest.raises(UsageError, match="--sram 1MiB and --device stm32h743 are two budgets"):
        budget("1MiB", "stm32h743")
    with pytest.raises(UsageError, match="no device 'stm32h742'; did you mean stm32h743"):
        budget(None, "stm32h742")
    with pytest.raises(UsageError, match="no device 'µ'; `firebox devices` lists them"):
        find_device("µ", known_devices())


def test_user_devices_are_added_and_later_files_win(mine, tmp_path, monkeypatch):
    assert known_devices(mine)["mine"] == Device(
        "mine", "My board", "microcontroller", "SRAM", 98_304, 1_000_000, "my own notes, page 1", 98_304 // 8
    )
    assert budget(None, "mine", mine) == Budget(98_304, 1_000_000, 98_304 // 8)
    assert "stm32h743" in known_devices(mine)
    later = tmp_path / "later.toml"
    later.write_text(MINE.replace("96KiB", "97KiB") + MINE.replace("[mine]", "[stm32h743]"))
    monkeypatch.setenv("FIREBOX_DEVICES", str(later))
    assert budget(None, "mine").sram_bytes == 97 * 1024
    assert budget(None, "mine", mine).sram_bytes == 96 * 1024
    assert budget(None, "stm32h743", mine).sram_bytes == 96 * 1024


@pytest.mark.parametrize(("written", "expected"), [("0", 0), ('"4KiB"', 4096), ("98303", 98_303)])
def test_a_device_may_name_its_reserve(written, expected, tmp_path):
    path = tmp_path / "own.toml"
    path.write_text(f"{MINE}reserve = {written}")
    (device,) = read_devices(path)
    assert (device.reserve_bytes, device.budget.available_bytes) == (expected, 98_304 - expected)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mine = 3", "device 'mine' is not a table"),
        ("[[mine]]", "device 'mine' is not a table"),
        ("[Mine]", "device 'Mine' has an invalid name"),
        ('["a\\nb"]', "has an invalid name"),
        ("[mine]", "has no name"),
        (MINE.replace("source", "sauce"), "has an unknown key 'sauce'; use name, "),
        (MINE.replace('source = "my own notes, page 1"', ""), "has no source"),
        (MINE.replace("my own notes, page 1", " "), "has source ' '; write one line of text"),
        (MINE.replace("my own notes, page 1", "one\\ntwo"), "has source 'one\\ntwo'; write one line of text"),
        (MINE.replace("My board", "\\u001b[31m"), "has name '\\x1b[31m'; write one line of text"),
        (MINE.replace("microcontroller", "toaster"), "kind 'toaster'; use phone core"),
        (MINE.replace('"96KiB"', "true"), "has sram True; write for example"),
        (MINE.replace('"96KiB"', "96.5"), "has sram 96.5; write for example"),
        (MINE.replace('"96KiB"', "nan"), "has sram nan; write for example"),
        (MINE.replace("96KiB", "96KB"), "has an invalid sram: size '96KB' has an unknown unit"),
        (MINE.replace("1000000", "0"), "has an invalid flash: "),
        (MINE.replace("1000000", "-5"), "has an invalid flash: "),
        (MINE + "reserve = -1", "has an invalid reserve: "),
        (MINE + "reserve = true", "has reserve True; write for example"),
        (MINE + "reserve = 98304", "has a reserve of 98,304 bytes in 98,304 bytes of SRAM; choose a smaller one"),
        (MINE.replace("1000000", "9" * 5000), "is not TOML"),
        (MINE + MINE, "is not TOML"),
        ("a = " + "[" * 5000, "is not TOML"),
        ("[mine", "is not TOML"),
    ],
)
def test_invalid_files_are_reported_in_one_line(text, said, tmp_path):
    path = tmp_path / "devices.toml"
    path.write_text(text)
    with pytest.raises(FormatError) as caught:
        read_devices(path)
    assert said in str(caught.value)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_files_that_are_binary_too_large_or_missing(tmp_path):
    path = tmp_path / "devices.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(FormatError, match="is not TOML"):
        read_devices(path)
    path.write_bytes(b"#" * 2**20 + b"#")
    with pytest.raises(FormatError, match="the limit is 1,048,576"):
        read_devices(path)
    with pytest.raises(UsageError, match="no such file"):
        read_devices(tmp_path / "none.toml")


@settings(max_examples=200)
@given(st.floats(0, 1), st.integers(0, 20), st.binary(max_size=8))
def test_any_corruption_of_a_file_is_read_or_rejected(tmp_path_factory, where, cut, instead):
    data = PRESETS.read_bytes()
    start = int(where * len(data))
    path = tmp_path_factory.getbasetemp() / "changed.toml"
    path.write_bytes(data[:start] + instead + data[start + cut :])
    with contextlib.suppress(FireboxError):
        assert all(isinstance(device, Device) for device in read_devices(path))


def test_the_command_lists_devices(command, mine):
    ran = command("devices")
    assert ran.code == 0
    assert "stm32h743" in ran.out
    assert "AXI SRAM" in ran.out
    found = json.loads(command("devices", "--devices", mine, "--json").out)
    assert (found["mine"]["sram_bytes"], found["mine"]["reserve_bytes"]) == (98_304, 12_288)
    assert list(found)[:-1] == list(tomllib.loads(PRESETS.read_text()))
    assert all(device["source"] for device in found.values())
    bad = command("devices", environment={"FIREBOX_DEVICES": "/none.toml"})
    assert (bad.code, bad.err) == (2, "error: no such file: /none.toml\n")


def test_a_device_is_the_budget_of_plan_and_profile(command, exported):
    model = exported / "model.int8.tflite"
    ran = command("plan", model, "--device", "stm32f411", "--json")
    verdict = json.loads(ran.out)["verdict"]
    assert (ran.code, verdict["sram_bytes"], verdict["reserve_bytes"], verdict["flash_bytes"]) == (
        0,
        131_072,
        16_384,
        524_288,
    )
    assert verdict["flash_needed_bytes"] == model.stat().st_size
    both = command("plan", model, "--device", "stm32f411", "--sram", "1MiB")
    assert (both.code, both.err.count("\n"), both.out) == (2, 1, "")
    measured = command("profile", model, "--device", "nrf52840", "--seconds", "0.1", "--json")
    assert json.loads(measured.out)["verdict"]["sram_bytes"] == 262_144
