"""GGUF models in several files, `NAME-00001-of-00003.gguf` and so on: the first has the metadata, each has tensors."""

from __future__ import annotations

import re
from pathlib import Path

from steerling_jax.errors import UserError
from steerling_jax.io.gguf.header import GgufHeader, read_gguf_header
from steerling_jax.io.gguf.tensors import GgufTensor, gguf_tensors

_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)
_NUMBER, _COUNT, _TENSORS = "split.no", "split.count", "split.tensors.count"


def part_names(name: str) -> list[str]:
    """The names of all parts of the model that a part's file name belongs to; the name alone if it is no part's."""
    match = _PART.fullmatch(name)
    if match is None or not 1 <= int(match[2]) <= int(match[3]):
        return [name]
    return [f"{match[1]}-{number:05}-of-{match[3]}.gguf" for number in range(1, int(match[3]) + 1)]


def read_parts(path: Path) -> tuple[GgufHeader, dict[str, GgufTensor]]:
    """The header with the metadata, and the tensors of all parts of the model in `path`, which is any of them.

    Raises `UserError` if a file is damaged, a part is missing or of another model, or a quantisation is not read.
    """
    names = part_names(path.name)
    paths = [path.with_name(name) for name in names]
    missing = [part for part in paths if not part.is_file()]
    if missing and len(paths) > 1:  # a single file that does not exist is reported by the reader of the header
        raise UserError(f"{missing[0]} is missing: the model has {len(paths)} parts; copy all into one folder.")
    headers = [read_gguf_header(part) for part in paths]
    count = headers[0].metadata.get(_COUNT, 1)
    if len(paths) == 1 and count != 1:
        raise UserError(
            f"{path} is one of {count} parts of a model; give the parts their names NAME-00001-of-{count:05}.gguf."
            if isinstance(count, int) and count > 1
            else f"{path}: the field {_COUNT} is {count!r}; convert the model again."
        )
    tensors: dict[str, GgufTensor] = {}
    for number, header in enumerate(headers):
        found = (header.metadata.get(_NUMBER), header.metadata.get(_COUNT))
        if len(paths) > 1 and found != (number, len(paths)):
            raise UserError(
                f"{header.path} has {_NUMBER} {found[0]} and {_COUNT} {found[1]}, but as part {number + 1} of "
                f"{len(paths)} it must have {number} and {len(paths)}; use the parts of one model."
            )
        for name, tensor in gguf_tensors(header).items():
            if name in tensors:
                other = tensors[name].file.name
                raise UserError(f"{header.path}: tensor {name!r} is in {other} as well; use the parts of one model.")
            tensors[name] = tensor
    expected = headers[0].metadata.get(_TENSORS, len(tensors))
    if expected != len(tensors):
        raise UserError(
            f"{path}: the parts have {len(tensors)} tensors, but {_TENSORS} is {expected}; use the parts of one model."
        )
    return headers[0], tensors
