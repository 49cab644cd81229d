"""Dtypes of what is cached: what is converted, and how many bytes it then takes.

Only what is kept is converted. A step that computes goes on with what it computed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pab_compile.errors import OptionError
from pab_compile.passes.sites.site import Site

AUTO = "auto"
NARROWEST = torch.float8_e4m3fn
CACHE_DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float8_e4m3": torch.float8_e4m3fn,
}


def dtype_of(given: object) -> torch.dtype | None:
    """The dtype that the option ``cache_dtype`` names; None for ``auto``, which decides later.

    Raises:
        OptionError: it is none of ``CACHE_DTYPES``.
    """
    if given is None or given == AUTO:
        return None
    if isinstance(given, torch.dtype) and given in CACHE_DTYPES.values():
        return given
    name = given.removeprefix("torch.") if isinstance(given, str) else ""
    name = "float8_e4m3" if name == "float8_e4m3fn" else name
    if name in CACHE_DTYPES:
        return CACHE_DTYPES[name]
    raise OptionError(
        f"cache_dtype={given!r} is no dtype for what is cached. Known: {', '.join(CACHE_DTYPES)}; "
        f"{AUTO!r} takes the narrowest where memory is short, "
        "None keeps everything as it was computed."
    )


def has_scales(dtype: torch.dtype) -> bool:
    """Whether what is kept in a dtype has a scale per row."""
    return dtype.itemsize == 1


def scale_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type of the scales of a tensor."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def converted_bytes(
    shape: Sequence[int], dtype: torch.dtype, kept_in: torch.dtype | None
) -> int | None:
    """Bytes of a tensor once it is converted; None if it is kept as it is.

    A tensor of floating point is converted if this takes less memory, with the scales of its rows.

    Args:
        shape: sizes of the tensor.
        dtype: its dtype.
        kept_in: the dtype to keep it in.
    """
    if kept_in is None or not dtype.is_floating_point or not shape:
        return None
    numel = torch.Size(shape).numel()
    needed = numel * kept_in.itemsize
    if has_scales(kept_in):
        needed += torch.Size(shape[:-1]).numel() * scale_dtype(dtype).itemsize
    return needed if needed < numel * dtype.itemsize else None


def kept_bytes(site: Site, kept_in: torch.dtype | None) -> int:
    """Bytes of one output of a site as it is kept.

    Args:
        site: the site, which may be a sum of several.
        kept_in: the dtype to keep tensors in; None keeps them as they are.
    """
    found = site.cache_bytes
    for shape, dtype in site.kept if kept_in is not None else ():
        converted = converted_bytes(shape, dtype, kept_in)
        if converted is not None:
            found -= torch.Size(shape).numel() * dtype.itemsize - converted
    return found
