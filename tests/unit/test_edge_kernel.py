"""The kernel: Random123's vectors, the numpy twin's bits, fused passes, an aarch64 build."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edge_runtime import kernel
from edge_runtime.kernel import KERNEL_NAME, KERNEL_REASON, numpy_twin
from edge_runtime.protocol.direction import direction, rounding_word, sign_words

SOURCES = Path(__file__).parents[2] / "edge_runtime" / "kernel"
ALL = 2**64 - 1

AddMoves = Callable[..., None]


@pytest.fixture
def native() -> object:
    if KERNEL_NAME != "c" and os.environ.get("PAIRZERO_KERNEL") != "numpy":
        pytest.fail(f"the C kernel was not built: {KERNEL_REASON}")
    from edge_runtime.kernel import _native

    return _native


@pytest.mark.parametrize(
    ("counter", "key", "wanted"),
    [  # published with Random123 (kat_vectors, philox4x64, 10 rounds)
        (
            (0, 0, 0, 0), (0, 0),
            (0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B),
        ),
        (
            (ALL, ALL, ALL, ALL), (ALL, ALL),
            (0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0),
        ),
        (
            (0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D0, 0x082EFA98EC4E6C89),
            (0x452821E638D01377, 0xBE5466CF34E90C6C),
            (0xA528F45403E61D95, 0x38C72DBD566E9788, 0xA5A1610E72FD18B5, 0x57BD43B5E52B7FE6),
        ),
    ],
)  # fmt: skip
def test_philox_meets_the_known_answers(
    native: object, counter: tuple[int, ...], key: tuple[int, ...], wanted: tuple[int, ...]
) -> None:
    assert native.philox4x64_10(counter, key) == wanted  # type: ignore[attr-defined]


@pytest.mark.parametrize("size", [0, 1, 15, 64, 255, 256, 257, 4096, 4097, 70_001, 200_000])
@pytest.mark.parametrize("num_moves", [1, 2, 5])
def test_both_kernels_give_the_same_bits(native: object, size: int, num_moves: int) -> None:
    rng = np.random.default_rng(size)
    start = rng.normal(size=size).astype(np.float32)
    seeds = [0, ALL, 7, 2**63, 12345][:num_moves]
    scales = [2.0**-10, -0.3, 1e-20, 5.0, -(2.0**-9)][:num_moves]
    ours, twin = start.copy(), start.copy()
    native.add_moves(ours, 3, 11, seeds, scales)  # type: ignore[attr-defined]
    numpy_twin.add_moves(twin, 3, 11, seeds, scales)
    assert ours.tobytes() == twin.tobytes()


def test_a_fused_pass_is_the_definition_added_twice(native: object) -> None:
    weights = np.zeros(1000, dtype=np.float32)
    native.add_moves(weights, 2, 0, [5, 6], [0.5, 0.125])  # type: ignore[attr-defined]
    wanted = np.float32(0.5) * direction(5, 2, 1000) + np.float32(0.125) * direction(6, 2, 1000)
    np.testing.assert_array_equal(weights, wanted)


@pytest.mark.parametrize("size", [0, 1, 63, 255, 256, 257, 4097, 70_001])
def test_whole_moves_are_the_same_in_both_kernels_and_exact(native: object, size: int) -> None:
    start = np.random.default_rng(size).integers(-30_000, 30_000, size).astype(np.int16)
    ours, twin = start.copy(), start.copy()
    native.add_moves(ours, 3, 11, [5, ALL], [2047.0, -3.0])  # type: ignore[attr-defined]
    numpy_twin.add_moves(twin, 3, 11, [5, ALL], [2047.0, -3.0])
    signs = [direction(seed, 3, 11 * 256 + size)[11 * 256 :] for seed in (5, ALL)]
    np.testing.assert_array_equal(ours, start + 2047 * signs[0] - 3 * signs[1])
    np.testing.assert_array_equal(ours, twin)


@pytest.mark.parametrize("scale", [0.5, 32768.0, -32769.0, np.nan, np.inf])
def test_a_whole_move_is_a_whole_number_of_16_bits(native: object, scale: float) -> None:
    for kernels in (native, numpy_twin):
        weights = np.zeros(300, dtype=np.int16)
        with pytest.raises((ValueError, OverflowError)):
            kernels.add_moves(weights, 0, 0, [1], [scale])  # type: ignore[attr-defined]
        assert not weights.any()


WIDTHS = [1, 13, 64, 100, 256, 576, 768]
"""Rows that begin anywhere in a word of signs, in a block of four words, or on one."""


def stored_matrix(dtype: type, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A matrix of whole numbers, a scale for each row, and some of its rows, one of them twice."""
    rng = np.random.default_rng(width)
    limit = np.iinfo(dtype).max
    stored = rng.integers(-limit, limit, (300, width), dtype=dtype, endpoint=True)
    row_scales = (rng.random(300) * 2.0**-12).astype(np.float32)
    return stored, row_scales, np.array([3, 4, 5, 299, 0, 3, 2, 1, 0, 150], dtype=np.int64)


@pytest.mark.parametrize("dtype", [np.int8, np.int16])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("num_moves", [0, 1, 3])
def test_rows_expand_to_the_same_bits_in_both_kernels_and_by_definition(
    native: object, dtype: type, width: int, num_moves: int
) -> None:
    stored, row_scales, rows = stored_matrix(dtype, width)
    seeds, scales = [7, ALL, 2**63][:num_moves], [2.0**-10, -0.3, 2.0**-9][:num_moves]
    ours = np.full((len(rows), width), np.nan, dtype=np.float32)
    twin = ours.copy()
    native.expand_rows(ours, stored, rows, 2, row_scales, seeds, scales)  # type: ignore[attr-defined]
    numpy_twin.expand_rows(twin, stored, rows, 2, row_scales, seeds, scales)
    assert ours.tobytes() == twin.tobytes()

    wanted = stored.astype(np.float32) * row_scales[:, None]
    for seed, scale in zip(seeds, scales, strict=True):
        wanted += np.float32(scale) * direction(seed, 2, stored.size).reshape(stored.shape)
    assert ours.tobytes() == wanted[rows].tobytes()


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({0: np.empty((2, 5), np.float32)}, ValueError),
        ({0: np.empty((2, 4))}, TypeError),
        ({1: np.zeros((3, 4), np.uint8)}, TypeError),
        ({1: np.zeros(12, np.int16)}, ValueError),
        ({1: np.zeros((3, 8), np.int16)[:, ::2]}, (BufferError, ValueError)),
        ({2: np.array([0, 3])}, IndexError),
        ({2: np.array([-1, 0])}, IndexError),
        ({2: np.array([0, 1], np.int32)}, TypeError),
        ({3: -1}, OverflowError),
        ({4: np.ones(2, np.float32)}, ValueError),
        ({4: np.ones(3)}, TypeError),
        ({6: [1.0, 2.0]}, ValueError),
    ],
)
def test_the_kernel_reads_nothing_beyond_a_matrix(
    native: object, changed: dict[int, object], error: type[Exception]
) -> None:
    arguments: list[object] = [
        np.empty((2, 4), np.float32), np.zeros((3, 4), np.int16), np.array([0, 2]), 0,
        np.ones(3, np.float32), [1], [1.0],
    ]  # fmt: skip
    native.expand_rows(*arguments)  # type: ignore[attr-defined]
    for place, value in changed.items():
        arguments[place] = value
    with pytest.raises(error):
        native.expand_rows(*arguments)  # type: ignore[attr-defined]
    if error is IndexError:  # a negative row would be another one to numpy
        with pytest.raises(error):
            numpy_twin.expand_rows(*arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("values", [[], [0.0], [-3.0, 2.0], [1.0, np.nan], [-np.inf, 1.0]])
def test_max_abs_is_numpys(native: object, values: list[float]) -> None:
    array = np.array(values, dtype=np.float32)
    wanted = np.max(np.abs(array), initial=0.0)
    np.testing.assert_equal(native.max_abs(array), wanted)  # type: ignore[attr-defined]
    np.testing.assert_equal(numpy_twin.max_abs(array), wanted)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((np.zeros(4), 0, 0, [1], [1.0]), TypeError),
        ((np.zeros(4, np.float32), 0, 0, [1, 2], [1.0]), ValueError),
        ((np.zeros(4, np.float32), 0, 0, [0] * 17, [1.0] * 17), ValueError),
        ((np.zeros(4, np.float32), 0, 0, [-1], [1.0]), OverflowError),
        ((np.zeros(4, np.float32), -1, 0, [1], [1.0]), OverflowError),
        ((np.zeros(4, np.float32), 2**64 + 5, 0, [1], [1.0]), OverflowError),
        ((np.zeros(4, np.float32), 0, -1, [1], [1.0]), OverflowError),
        ((np.zeros(4, np.float32), 0, 2**64, [1], [1.0]), OverflowError),
        ((np.zeros(4, np.float32), 1.5, 0, [1], [1.0]), TypeError),
        ((np.zeros(8, np.float32)[::2], 0, 0, [1], [1.0]), (BufferError, ValueError)),
        ((b"1234", 0, 0, [1], [1.0]), (BufferError, TypeError)),
    ],
)
def test_bad_arguments_are_refused(
    native: object, arguments: tuple[object, ...], error: type[Exception]
) -> None:
    with pytest.raises(error):
        native.add_moves(*arguments)  # type: ignore[attr-defined]
    if error is OverflowError:  # the twin takes what the kernel takes, and nothing else
        with pytest.raises(error):
            numpy_twin.add_moves(*arguments)  # type: ignore[arg-type]


def test_the_fallback_can_be_asked_for_and_says_so() -> None:
    answer = subprocess.run(
        [sys.executable, "-c", "from edge_runtime.kernel import *; print(KERNEL_NAME)"],
        env={**os.environ, "PAIRZERO_KERNEL": "numpy"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert answer.stdout.strip() == "numpy"


def tool(name: str, package: str) -> str:
    """A program that must be there in CI and may be missing elsewhere."""
    found = shutil.which(name)
    if found is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"install {package}")
    assert found is not None
    return found


@pytest.mark.parametrize("source", ["module.c", "core.c"])
@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_every_source_compiles_without_a_warning(
    tmp_path: Path, compiler: str, source: str
) -> None:
    """What one compiler only warns of is an error in the next, and the build would be skipped."""
    subprocess.run(
        [tool(compiler, compiler), "-c", "-O3", "-std=gnu11", "-ffp-contract=off", "-fPIC",
         "-Wall", "-Wextra", "-Werror", "-Werror=implicit-function-declaration", "-Wno-psabi",
         "-Wno-parentheses", f"-I{sysconfig.get_path('include')}", str(SOURCES / source),
         "-o", str(tmp_path / "out.o")],
        check=True,
    )  # fmt: skip


AARCH64_MAIN = r"""
#include "core.h"
#include <stdio.h>
static float w[70001], row_scales[3] = {0.5f, 0.25f, 0.3f}, rows_out[2 * 100];
static int16_t whole[70001];
int main(void)
{
    const uint64_t seeds[2] = {2024, 77};
    const float scales[2] = {0.0009765625f, -0.375f};
    const int16_t quanta[2] = {7, -300};
    const int64_t rows[2] = {2, 1};
    uint64_t words[9];
    for (int i = 0; i < 70001; i++) w[i] = (float)(i % 513 - 256) / 1024;
    pairzero_sign_words(2024, 3, 45, 9, words);
    pairzero_add_moves(w, 70001, 3, 11, seeds, scales, 2);
    fwrite(words, sizeof words, 1, stdout);
    fwrite(w, sizeof w, 1, stdout);
    for (int i = 0; i < 70001; i++) whole[i] = (int16_t)(i % 513 - 256);
    pairzero_expand_rows(rows_out, whole, 2, rows, 2, 100, 3, row_scales, seeds, scales, 2);
    fwrite(rows_out, sizeof rows_out, 1, stdout);
    pairzero_add_whole_moves(whole, 70001, 3, 11, seeds, quanta, 2);
    fwrite(whole, sizeof whole, 1, stdout);
    return 0;
}
"""


def test_aarch64_gives_the_same_bits(tmp_path: Path) -> None:
    compiler = tool("aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu")
    emulator = tool("qemu-aarch64-static", "qemu-user-static")
    (tmp_path / "main.c").write_text(AARCH64_MAIN)
    program = tmp_path / "main"
    subprocess.run(
        [compiler, "-O3", "-std=gnu11", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror",
         "-Wno-psabi", "-Wno-parentheses", "-static", f"-I{SOURCES}", str(tmp_path / "main.c"),
         str(SOURCES / "core.c"), "-o", str(program)],
        check=True,
    )  # fmt: skip
    output = subprocess.run([emulator, str(program)], capture_output=True, check=True).stdout
    words = np.frombuffer(output[:72], dtype="<u8")
    np.testing.assert_array_equal(words, sign_words(2024, 3, 45, 9))
    weights = ((np.arange(70001) % 513 - 256) / 1024).astype(np.float32)
    numpy_twin.add_moves(weights, 3, 11, [2024, 77], [0.0009765625, -0.375])
    whole = (np.arange(70001) % 513 - 256).astype(np.int16)
    rows_out = np.empty((2, 100), dtype=np.float32)
    numpy_twin.expand_rows(
        rows_out, whole[:300].reshape(3, 100), np.array([2, 1]), 3,
        np.array([0.5, 0.25, 0.3], dtype=np.float32), [2024, 77], [0.0009765625, -0.375],
    )  # fmt: skip
    numpy_twin.add_moves(whole, 3, 11, [2024, 77], [7.0, -300.0])
    assert output[72:] == weights.tobytes() + rows_out.tobytes() + whole.tobytes()


def processor_levels() -> list[str]:
    """The x86-64 levels that this processor can run; empty elsewhere."""
    if platform.machine() != "x86_64" or not Path("/proc/cpuinfo").exists():
        return []
    flags = set(Path("/proc/cpuinfo").read_text().split())
    needs = {
        "x86-64": set(),
        "x86-64-v3": {"avx2", "bmi2", "fma"},
        "x86-64-v4": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
    }
    return [level for level, wanted in needs.items() if wanted <= flags]


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@pytest.mark.parametrize("level", processor_levels())
def test_every_register_width_gives_the_same_bits(
    tmp_path: Path, level: str, compiler: str
) -> None:
    """The library picks a width when it is loaded; the others are built and tried here."""
    library = tmp_path / "core.so"
    subprocess.run(
        [tool(compiler, compiler), "-shared", "-fPIC", "-O3", "-std=gnu11", "-ffp-contract=off",
         "-Wno-psabi", f"-march={level}", "-DPAIRZERO_ONE_TARGET", str(SOURCES / "core.c"),
         "-o", str(library)],
        check=True,
    )  # fmt: skip
    rng = np.random.default_rng(5)
    weights = (rng.integers(-(2**20), 2**20, 70_003) / 2**12).astype(np.float32)[1:]
    wanted = weights.copy()
    seeds, scales = [2024, 77, 2**64 - 1], [2.0**-10, -0.375, 64.0]
    numpy_twin.add_moves(wanted, 3, 11, seeds, scales)
    ctypes.CDLL(str(library)).pairzero_add_moves(
        ctypes.c_void_p(weights.ctypes.data), ctypes.c_size_t(weights.size), ctypes.c_uint64(3),
        ctypes.c_uint64(11), (ctypes.c_uint64 * 3)(*seeds), (ctypes.c_float * 3)(*scales),
        ctypes.c_size_t(3),
    )  # fmt: skip
    assert weights.tobytes() == wanted.tobytes()

    stored, row_scales, rows = stored_matrix(np.int16, 100)
    expanded, wanted = np.empty((2, len(rows), 100), dtype=np.float32)
    numpy_twin.expand_rows(wanted, stored, rows, 3, row_scales, seeds, scales)
    ctypes.CDLL(str(library)).pairzero_expand_rows(
        ctypes.c_void_p(expanded.ctypes.data), ctypes.c_void_p(stored.ctypes.data),
        ctypes.c_size_t(2), ctypes.c_void_p(rows.ctypes.data), ctypes.c_size_t(len(rows)),
        ctypes.c_size_t(100), ctypes.c_uint64(3), ctypes.c_void_p(row_scales.ctypes.data),
        (ctypes.c_uint64 * 3)(*seeds), (ctypes.c_float * 3)(*scales), ctypes.c_size_t(3),
    )  # fmt: skip
    assert expanded.tobytes() == wanted.tobytes()

    whole = stored.reshape(-1) // 4
    wanted_whole = whole.copy()
    numpy_twin.add_moves(wanted_whole, 3, 11, seeds, [5.0, -700.0, 1.0])
    ctypes.CDLL(str(library)).pairzero_add_whole_moves(
        ctypes.c_void_p(whole.ctypes.data), ctypes.c_size_t(whole.size), ctypes.c_uint64(3),
        ctypes.c_uint64(11), (ctypes.c_uint64 * 3)(*seeds), (ctypes.c_int16 * 3)(5, -700, 1),
        ctypes.c_size_t(3),
    )  # fmt: skip
    np.testing.assert_array_equal(whole, wanted_whole)


def test_the_words_of_the_rounding_are_those_of_their_definition() -> None:
    rng = np.random.default_rng(5)
    seeds = [0, 1, 2**63, ALL, *(int(s) for s in rng.integers(0, 2**64, 200, dtype=np.uint64))]
    for number, seed in enumerate(seeds):
        for tensor_index in (0, 1, number, 2**40 + number):
            assert kernel.rounding_word(seed, tensor_index) == rounding_word(seed, tensor_index)


def test_without_the_kernel_the_words_of_the_rounding_are_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kernel, "KERNEL_NAME", "numpy")
    monkeypatch.setattr(kernel, "_kernel", None)
    assert kernel.rounding_word(ALL, 7) == rounding_word(ALL, 7)
