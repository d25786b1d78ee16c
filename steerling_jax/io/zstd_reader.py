"""Reads Zstandard files, which fsspec would read only to the end of their first frame."""

from __future__ import annotations

import io
from typing import IO, Any

from steerling_jax.errors import UserError

_BLOCK = 1 << 16  # compressed bytes read at a time
_MAX_WINDOW = 1 << 31  # of `zstd --ultra --long=31`; the library's own limit would reject large dumps


class ZstdReader(io.RawIOBase):
    """The decompressed bytes of all frames of a file, as `cat a.zst b.zst` and `pzstd` write several.

    Raises `OSError` for invalid data and `EOFError` for a truncated file; the package's own stream reader would end
    without an error there.
    """

    def __init__(self, source: IO[bytes], address: str):
        """address: what error messages call the file. Raises `UserError` if the package is not installed."""
        try:
            import zstandard
        except ImportError:
            raise UserError(
                f"Reading {address} needs zstandard: pip install 'steerling-jax[zstd]', or decompress the file."
            ) from None
        self._source, self._error = source, zstandard.ZstdError
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)
        self._frame: Any = None  # None between frames
        self._compressed, self._output = b"", memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._output:
            self._compressed = self._compressed or self._source.read(_BLOCK)
            if not self._compressed:
                if self._frame is not None:
                    raise EOFError("it is truncated")
                return 0
            self._decompress()
        count = min(len(buffer), len(self._output))
        buffer[:count] = self._output[:count]
        self._output = self._output[count:]
        return count

    def _decompress(self) -> None:
        frame = self._frame or self._decompressor.decompressobj()
        try:
            self._output = memoryview(frame.decompress(self._compressed))
        except self._error as error:
            raise OSError(f"it is not valid Zstandard data ({error})") from error
        self._frame, self._compressed = (None, frame.unused_data) if frame.eof else (frame, b"")
