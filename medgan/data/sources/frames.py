"""Files of several frames (DICOM, pages of TIFF, GIF, ...): each frame is an image of its own, named `path#frameN`."""

from __future__ import annotations

from collections.abc import Callable

MULTI_FRAME = "multi-frame"
"""The word of --allow that takes them."""
FRAME = b"medgan frame %09d\n"
"""Goes before the bytes of a file of several, so that its frames differ by their bytes, too."""


def frame_names(path: str, count: int) -> list[str]:
    return [path] if count == 1 else [f"{path}#frame{frame}" for frame in range(count)]


def read_frame(read: Callable[[str], bytes], name: str) -> bytes:
    """What `read` gives of the file, with the frame before it if the name has one. Raises what `read` does."""
    path, mark, frame = name.rpartition("#frame")
    return FRAME % int(frame) + read(path) if mark and frame.isdigit() else read(name)


def parted(content: bytes) -> tuple[bytes, int | None]:
    """What `read_frame` read -> the file's bytes and which frame; None for a file of one."""
    if not content.startswith(FRAME[:13]):
        return content, None
    first, rest = content.split(b"\n", 1)
    return rest, int(first[13:])
