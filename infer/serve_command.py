"""`steerling serve`: an HTTP server with OpenAI's protocol."""

from __future__ import annotations

import argparse
from socket import socket
from typing import TYPE_CHECKING

from steerling_jax.cli.arguments import add_address_options, add_model_option, number_in_range
from steerling_jax.cli.steering_options import (
    add_steering_options,
    parse_steering_options,
    resolve_options,
    with_names,
)
from steerling_jax.errors import UserError

if TYPE_CHECKING:
    from steerling_jax.steering.rules import Rule

HELP = """\
Serve a model over HTTP, in the protocol of OpenAI's clients.

examples:
  steerling serve
  steerling serve --model ./small-model --port 9000 --rows 16
  steerling serve --host 0.0.0.0 --allow-host models.example.org --policy house.toml
  curl http://127.0.0.1:8000/v1/completions -d '{"prompt": "Return True if the file", "max_tokens": 32, "seed": 0}'
"""


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    positive, not_negative = number_in_range(int, 1), number_in_range(int, 0)
    add_model_option(parser)
    add_address_options(parser, port=8000)
    add("--rows", type=positive, default=8, metavar="N", help="texts generated at the same time (default: %(default)s)")
    add(
        "--queue",
        type=not_negative,
        default=64,
        metavar="N",
        help="requests that can wait for a row (default: %(default)s)",
    )
    add(
        "--max-new-tokens-limit",
        type=positive,
        metavar="N",
        help="largest max_tokens of a request (default: the model's context)",
    )
    add(
        "--max-body-bytes",
        type=positive,
        default=1_000_000,
        metavar="N",
        help="largest body of a request (default: %(default)s)",
    )
    add(
        "--prefix-cache-mb",
        type=not_negative,
        default=256,
        metavar="N",
        help="memory for prefixes that prompts share (default: %(default)s)",
    )
    add(
        "--warm-up",
        type=not_negative,
        default=512,
        metavar="N",
        help="before serving, compile for requests of up to N tokens, prompt included (default: %(default)s; 0: none)",
    )
    add(
        "--grace",
        type=number_in_range(float, 0.0),
        default=30.0,
        metavar="SECONDS",
        help="time for requests in flight to finish when the server is stopped (default: 30)",
    )
    add("--allow-host", action="append", default=[], metavar="NAME", help="another valid Host header; can be repeated")
    add(
        "--allow-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="origin of a web page that can send requests, such as https://example.org; can be repeated",
    )
    add(
        "--classifier",
        action="append",
        default=[],
        metavar="FILE",
        help="apply this classifier of `steerling sae classify` to prompts and outputs; can be repeated",
    )
    add(
        "--on-match",
        choices=("report", "refuse", "suppress"),
        default="report",
        help="where a classifier matches: say so in the response, refuse the text, or write it without the features "
        "of the classifier (default: %(default)s)",
    )
    add_steering_options(parser)


def run(args: argparse.Namespace) -> None:
    try:
        from steerling_jax.infer.server.listening import listen
    except ModuleNotFoundError as error:
        raise UserError(f"`steerling serve` needs {error.name}: pip install 'steerling-jax[serve]'.") from None
    rules = parse_steering_options(args)
    # The socket is opened before the model is loaded, so that an address in use is reported at once.
    with listen(args.host, args.port) as listening:
        _serve(args, rules, listening)


def _serve(args: argparse.Namespace, rules: tuple[Rule, ...], listening: socket) -> None:
    import steerling_jax as sj
    from steerling_jax.cli.console import note, progress_bar
    from steerling_jax.decoding.decoder import decoder_of
    from steerling_jax.infer.server.app import RequestLimits, Service, make_app
    from steerling_jax.infer.server.engine import Engine
    from steerling_jax.infer.server.listening import http_address
    from steerling_jax.infer.server.run import serve
    from steerling_jax.infer.server.text_checks import load_checks
    from steerling_jax.infer.server.warm_up import warm_up
    from steerling_jax.models.steerling.config import ModelConfig

    bundle = with_names(sj.load(args.model), args)
    # The warm-up needs one block, or one token, for the prompt and one for the text.
    shortest = 2 * (bundle.config.diff_block_size if isinstance(bundle.config, ModelConfig) else 1)
    decoder = decoder_of(
        bundle,
        rows=args.rows,
        prefix_cache_bytes=args.prefix_cache_mb << 20,
        room=max(args.warm_up, shortest) if args.warm_up else 0,
    )
    limits = RequestLimits(args.max_new_tokens_limit, args.max_body_bytes, args.rows + args.queue)
    checks = load_checks(bundle, args.classifier, args.on_match)
    engine = Engine(decoder, warm_up(decoder) if args.warm_up else ())
    service = Service(bundle, engine, limits, resolve_options(rules, bundle), checks)
    app = make_app(service, listening=args.host, hosts=args.allow_host, origins=args.allow_origin)
    address = http_address(listening)
    if args.warm_up:
        note(f"Compiling for 1 to {args.rows} rows; {address}/health reports the progress …")
    with progress_bar(unit="steps") as bar:
        task = bar.add_task("warming up", visible=bool(args.warm_up))

        def progress(done: int, total: int, ready: bool) -> None:
            bar.update(task, completed=done, total=total)
            if ready:
                bar.stop()
                note(f"Serving {service.model} at {address}/v1 (Ctrl-C to stop).")

        serve(app, service, listening, args.grace, progress)
