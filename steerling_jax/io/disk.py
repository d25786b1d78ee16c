"""Telling a full or forbidden disk from other failures: libraries report it each in their own way."""

from __future__ import annotations

import errno
import os

_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


def disk_trouble(error: BaseException) -> str | None:
    """The disk's own words for why `error` happened, if it was the disk."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno is not None:
            return os.strerror(seen.errno).lower()
        for code in _TROUBLE:
            if os.strerror(code) in str(seen):  # so TensorStore tells of it
                return os.strerror(code).lower()
        seen = seen.__cause__ or seen.__context__
    return None
