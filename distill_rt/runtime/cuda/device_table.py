"""The step tables of a contract on the GPU: packed rows for the kernels, times for the networks.

A captured graph keeps addresses, not numbers; so a table is written once and read by every request.

Legend: R rows, N evaluations per network call, K = NUM_WORDS.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distill_rt.backends.cuda.driver import DeviceMemory, Driver
from distill_rt.core.table import Row, StepTable
from distill_rt.kernels.triton.row_layout import ROW_BYTES, pack_row, pack_start, pack_table

Float32 = NDArray[np.float32]

TIME_ALIGNMENT = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceRow:
    """One row: the packed words on the host and their address, and the addresses of its times, float32 (N,) each."""

    row: Row
    packed: Float32
    address: int
    time: int
    second_time: int


class DeviceTable:
    """A table in two forms, with and without its predictions kept for previews.

    Attributes:
        start, own_start: addresses of the row that makes the first state from noise, and from the caller's latents.
    """

    def __init__(self, driver: Driver, table: StepTable, num_evaluations: int) -> None:
        first_c_in = table.rows[0].c_in
        own_start = pack_row(Row(time=0.0, net_id=-1, p=1.0, q=0.0, r=table.init_scale, g=0.0), first_c_in)
        self.own_start_packed = own_start
        shown = np.stack([
            pack_row(row, c_in, keeps_x0=row.calls_network) for row, c_in in zip(table.rows, _next_c_in(table), strict=True)
        ])  # fmt: skip
        plain = pack_table(table)
        words = np.concatenate([pack_start(table)[None], own_start[None], plain, shown])
        self._rows: DeviceMemory = driver.upload(words, "a step table")
        times = np.array([row.time for row in table.rows] + [_second_time(row) for row in table.rows], np.float32)
        # Each row's times start at an aligned address, from which any kernel of a library may copy.
        columns = -(-4 * num_evaluations // TIME_ALIGNMENT) * TIME_ALIGNMENT // 4
        self._times: DeviceMemory = driver.upload(np.repeat(times[:, None], columns, 1), "a step table")
        self.start = self._rows.address
        self.own_start = self._rows.address + ROW_BYTES
        num_rows = len(table.rows)

        def rows(packed: Float32, first: int) -> tuple[DeviceRow, ...]:
            return tuple(
                DeviceRow(
                    row=row,
                    packed=packed[i],
                    address=self._rows.address + (first + i) * ROW_BYTES,
                    time=self._times.address + 4 * columns * i,
                    second_time=self._times.address + 4 * columns * (num_rows + i),
                )
                for i, row in enumerate(table.rows)
            )

        self.rows = rows(plain, 2)
        self.shown_rows = rows(shown, 2 + num_rows)


def _next_c_in(table: StepTable) -> list[float]:
    return [row.c_in for row in table.rows[1:]] + [1.0]


def _second_time(row: Row) -> float:
    return row.time if row.second_time is None else row.second_time
