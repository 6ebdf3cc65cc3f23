"""Peaks of a CUDA device's allocator. Other devices have no such counters; their memory is counted by ``tensors``."""

from __future__ import annotations

import torch


class DevicePeaks:
    """How far a device's ``allocated`` and ``reserved`` bytes rise above their level at construction."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._start: dict[str, int] = {}
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
            self._start = {
                "allocated": torch.cuda.memory_allocated(device),
                "reserved": torch.cuda.memory_reserved(device),
            }

    def increases(self) -> dict[str, int]:
        """The peaks since construction in bytes above the start; empty where nothing counts them."""
        return {name: peak - self._start[name] for name, peak in self.peaks().items()}

    def peaks(self) -> dict[str, int]:
        """The peaks since construction in bytes, all that is on the device; empty where nothing counts them."""
        if not self._start:
            return {}
        torch.cuda.synchronize(self._device)
        return {
            "allocated": torch.cuda.max_memory_allocated(self._device),
            "reserved": torch.cuda.max_memory_reserved(self._device),
        }
