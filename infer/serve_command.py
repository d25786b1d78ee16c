"""`steerling serve`: answers over HTTP, in OpenAI's protocol."""

from __future__ import annotations

import argparse
from socket import socket

from steerling_jax.cli.steering_options import SteeringOptions, add_steering_options, from_args, load_named
from steerling_jax.errors import UserError

HELP = """\
Answer requests over HTTP, in the protocol of OpenAI's clients.

examples:
  steerling serve
  steerling serve --model ./small-model --port 9000 --rows 16
  steerling serve --host 0.0.0.0 --allow-host models.example.org --policy house.toml
  curl http://127.0.0.1:8000/v1/completions -d '{"prompt": "re.split(pattern, string)", "max_tokens": 64}'
"""


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", metavar="MODEL", help="a folder, a checkpoint, a bundled model or a Hub id (default: bundled)")
    add("--host", default="127.0.0.1", metavar="ADDRESS", help="to listen on (default: %(default)s, this machine only)")
    add("--port", type=int, default=8000, metavar="N", help="0 for a free one (default: %(default)s)")
    add("--rows", type=int, default=8, metavar="N", help="texts written at once, in all (default: %(default)s)")
    add("--queue", type=int, default=64, metavar="N", help="requests that may wait for a row (default: %(default)s)")
    add("--max-new-tokens-limit", type=int, metavar="N", help="of one text (default: the model's context)")
    add("--max-body-bytes", type=int, default=1_000_000, metavar="N", help="of one request (default: %(default)s)")
    add("--prefix-cache-mb", type=int, default=256, metavar="N", help="memory for prompts seen before (default: 256)")
    add(
        "--warm-up",
        type=int,
        default=512,
        metavar="N",
        help="compile first, for prompts and texts of up to N tokens together (default: %(default)s; 0: do not)",
    )
    add("--grace", type=float, default=30.0, metavar="SECONDS", help="to end requests, when stopped (default: 30)")
    add("--allow-host", action="append", default=[], metavar="NAME", help="a further Host name; may be repeated")
    add("--allow-origin", action="append", default=[], metavar="ORIGIN", help="a web page's, as https://example.org")
    add_steering_options(parser)


def run(args: argparse.Namespace) -> None:
    for name, least in (
        ("rows", 1),
        ("queue", 0),
        ("max_new_tokens_limit", 1),
        ("max_body_bytes", 1),
        ("prefix_cache_mb", 0),
        ("warm_up", 0),
        ("grace", 0),
    ):
        value = getattr(args, name)
        if value is not None and not value >= least:
            raise UserError(f"--{name.replace('_', '-')} is {value}, but it must be at least {least}.")
    if not 0 <= args.port < 2**16:
        raise UserError(f"--port is {args.port}, but it must be from 0 to {2**16 - 1}.")
    try:
        from steerling_jax.infer.server.run import listen
    except ModuleNotFoundError as error:
        raise UserError(f"`steerling serve` needs {error.name}: pip install 'steerling-jax[serve]'.") from None
    steering = from_args(args)
    with listen(args.host, args.port) as listening:  # an address in use is told before the model is loaded
        _serve(args, steering, listening)


def _serve(args: argparse.Namespace, steering: SteeringOptions, listening: socket) -> None:
    from steerling_jax.cli.console import note, progress
    from steerling_jax.decoding.decoder import Decoder
    from steerling_jax.infer.server.app import RequestLimits, Service, make_app
    from steerling_jax.infer.server.engine import Engine
    from steerling_jax.infer.server.run import serve
    from steerling_jax.infer.server.warm_up import warm_up

    bundle = load_named(args.model, args.catalogue)
    room = max(args.warm_up, 2 * bundle.config.diff_block_size) if args.warm_up else 0
    decoder = Decoder(
        bundle.params,
        config=bundle.config,
        compute=bundle.compute,
        rows=args.rows,
        prefix_cache_bytes=args.prefix_cache_mb << 20,
        room=room,
    )
    limits = RequestLimits(args.max_new_tokens_limit, args.max_body_bytes, args.rows + args.queue)
    engine = Engine(decoder, warm_up(decoder) if args.warm_up else ())
    service = Service(bundle, engine, limits, steering.configs(bundle))
    app = make_app(service, listening=args.host, hosts=args.allow_host, origins=args.allow_origin)
    host, port = listening.getsockname()[:2]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    if args.warm_up:
        note(f"Compiling for 1 to {args.rows} rows, which {address}/health tells of …")
    with progress(unit="steps") as bar:
        task = bar.add_task("warming up", visible=bool(args.warm_up))

        def tell(done: int, total: int, ready: bool) -> None:
            bar.update(task, completed=done, total=total)
            if ready:
                bar.stop()
                note(f"Serving {service.model} at {address}/v1 (Ctrl-C to stop).")

        serve(app, service, listening, args.grace, tell)
