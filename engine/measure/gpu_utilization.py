"""How busy a GPU was while something ran, as NVML tells. Unverified: never ran on a GPU. Nothing on other devices."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Any, Self

import torch


class GpuUtilization:
    """Context manager; afterwards ``share`` is the mean share of time in which a kernel ran, 0 to 1.

    ``None`` on other devices than CUDA's, and where NVML cannot be read.
    """

    def __init__(self, device: torch.device, interval_s: float = 0.02) -> None:
        self.share: float | None = None
        self._device = device
        self._interval_s = interval_s
        self._finished = threading.Event()
        self._readings: list[int] = []
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        if self._device.type == "cuda":
            self._thread = threading.Thread(target=self._sample, name="gpu-utilization", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is None:
            return
        self._finished.set()
        self._thread.join()
        if self._readings:
            self.share = sum(self._readings) / len(self._readings) / 100

    def _sample(self) -> None:
        try:
            import pynvml

            pynvml.nvmlInit()
        except Exception:  # no library or no driver: then nothing is known
            return
        try:
            handle = self._handle(pynvml)
            while not self._finished.wait(self._interval_s):
                self._readings.append(int(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu))
        except pynvml.NVMLError:
            return
        finally:
            pynvml.nvmlShutdown()

    def _handle(self, pynvml: Any) -> Any:
        """By UUID, because CUDA may number devices otherwise than NVML."""
        uuid = str(torch.cuda.get_device_properties(self._device).uuid)
        return pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")
