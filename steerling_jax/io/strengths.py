"""`steering.json` in a model's folder: the strengths that `--amplify NAME` and `--suppress NAME` have without a number.

`{"amplify": 0.75, "suppress": 0.2}`, either of them optional. `steerling steer-eval` finds a model's useful range.
"""

from __future__ import annotations

from pathlib import Path

from steerling_jax.errors import UserError
from steerling_jax.io.json_files import read_json_object
from steerling_jax.steering.rules import check_name, check_strength
from steerling_jax.steering.strengths import PRESET_STRENGTHS

FILE = "steering.json"


def read_strengths(folder: Path) -> dict[str, float]:
    """The default strengths by action, "amplify" or "suppress"; empty if the folder has no such file.

    Raises `UserError` for another action and for a strength that is not a number of at least 0.
    """
    path = folder / FILE
    if not path.is_file():
        return {}
    strengths = {}
    for action, value in read_json_object(path).items():
        check_name(action, tuple(PRESET_STRENGTHS), f"{path}: {action!r} is not a kind of steering with a strength")
        if isinstance(value, str):
            raise UserError(f"{path}: the strength of {action} is {value!r}; give a number that is not negative.")
        strengths[action] = check_strength(value, str(path), f"strength of {action}")
    return strengths
