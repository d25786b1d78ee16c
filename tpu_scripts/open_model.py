"""An open model on all devices of one host: reads outputs of layers and writes a text. open_model.sh runs it on a TPU.

    python open_model.py gs://my-bucket/Qwen3-8B --prompt "A heron is" --layers 12 24
    python open_model.py Qwen/Qwen3-8B --dry-run

The weights are read from the bucket tensor by tensor, each device's part directly to that device.
"""

from __future__ import annotations

import argparse
import math
import sys

import jax
import numpy as np

import steerling_jax as sj
from steerling_jax.loading import read_config
from steerling_jax.models.families import param_shapes, param_shardings
from steerling_jax.parallel.sharding import MeshShape, make_mesh


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", help="a folder, a Hub id, or the address of a folder in a bucket")
    parser.add_argument("--prompt", default="A heron is", help="(default: %(default)r)")
    parser.add_argument("--layers", type=int, nargs="+", metavar="N", help="blocks to read (default: the middle one)")
    parser.add_argument("--max-new-tokens", type=int, default=64, metavar="N")
    parser.add_argument("--dry-run", action="store_true", help="load no weights; print what would be loaded, and where")
    args = parser.parse_args()
    if jax.process_count() > 1:
        parser.error(
            "texts are written on the devices of one host; choose a TPU with one, such as v5litepod-8 or v5p-8"
        )

    config = read_config(args.model)
    layers = args.layers or [config.n_layers // 2]
    # All devices share each matrix product, so a token takes the least time.
    mesh = make_mesh(MeshShape(fsdp=1, tensor=-1))
    shardings = param_shardings(config, mesh)
    pairs = zip(jax.tree.leaves(param_shapes(config)), jax.tree.leaves(shardings), strict=True)
    numbers = sum(math.prod(sharding.shard_shape(leaf.shape)) for leaf, sharding in pairs)
    print(f"{args.model}: {config.n_layers} layers of width {config.width}")
    print(f"{2 * numbers / 2**30:.3g} GiB of bfloat16 weights on each of {mesh.size} × {jax.devices()[0].device_kind}")
    if args.dry_run:
        print(f"dry run: would read the outputs of blocks {layers} and write {args.max_new_tokens} tokens")
        return 0

    bundle = sj.load(args.model, dtype="bfloat16", sharding=mesh)
    with jax.set_mesh(mesh):
        for layer, states in sj.hidden_states(bundle, args.prompt, layers=layers).items():
            norms = np.linalg.norm(states[0], axis=-1)
            print(f"block {layer}: {states.shape}, norms from {norms.min():.4g} to {norms.max():.4g}")
        settings = sj.GenerationConfig(max_new_tokens=args.max_new_tokens, temperature=0.0)
        print(args.prompt + sj.generate(bundle, args.prompt, settings).text)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except sj.UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
