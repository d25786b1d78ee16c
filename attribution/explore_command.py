"""`steerling explore`: a page in the browser that writes texts and explains them."""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
from socket import socket
from typing import TYPE_CHECKING

from steerling_jax.cli.arguments import add_address_options, add_model_option, number_in_range
from steerling_jax.cli.autoencoder_options import add_autoencoders_option, load_autoencoders, with_autoencoders
from steerling_jax.errors import UserError, require

if TYPE_CHECKING:
    from steerling_jax.autoencoders.autoencoder import Autoencoder
    from steerling_jax.bundle import Bundle

    Loaded = tuple[Bundle, tuple[Autoencoder, ...]]
    from steerling_jax.attribution.explorer.app import Load
    from steerling_jax.attribution.explorer.settings import ExplorerSettings

HELP = """\
Open a page in the browser that writes texts, explains any words of them, and compares steered ones.

examples:
  steerling explore
  steerling explore --index INDEX --corpus STORE --open
  steerling explore --model ./small-model --port 9000
  steerling explore --model Qwen/Qwen3-1.7B-Base --autoencoders ./layers.7 ./layers.20
  steerling explore --host 0.0.0.0 --allow-host models.example.org
"""
_SHORT = 256  # positions: texts up to this length, prompt included, share their compiled programs
_PREFIX_CACHE = 64 << 20  # bytes: the texts of a comparison have one prompt


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    positive = number_in_range(int, 1)
    add_model_option(parser)
    add_autoencoders_option(add, with_k=True)
    add_address_options(parser, port=8765)
    add("--open", action="store_true", help="open the page in the browser")
    add("--index", metavar="FOLDER", help="also search the training data, in an index of `steerling index`")
    add("--corpus", metavar="STORE", help="the corpus store of that index")
    add(
        "--rows",
        type=positive,
        default=1,
        metavar="N",
        help="texts written at the same time (default: %(default)s; each number has a program of its own to compile)",
    )
    add(
        "--max-new-tokens-limit",
        type=positive,
        metavar="N",
        help="most tokens of a text (default: the model's context)",
    )
    add("--allow-host", action="append", default=[], metavar="NAME", help="another valid Host header; can be repeated")
    add(
        "--no-token",
        action="store_true",
        help="let every machine that reaches the address use the page; without it, the page of an address that other "
        "machines reach needs the token in the printed link",
    )
    add(
        "--grace",
        type=number_in_range(float, 0.0),
        default=5.0,
        metavar="SECONDS",
        help="time for texts in progress to be finished when the server is stopped (default: 5)",
    )


def run(args: argparse.Namespace) -> None:
    require((args.index is None) == (args.corpus is None), "--index and --corpus go together; give both.")
    try:
        from steerling_jax.infer.server.listening import listen
    except ModuleNotFoundError as error:
        raise UserError(f"`steerling explore` needs {error.name}: pip install 'steerling-jax[explore]'.") from None
    # The socket is opened before anything is loaded, so that an address in use is reported at once.
    with listen(args.host, args.port) as listening:
        _serve(args, listening)


def _serve(args: argparse.Namespace, listening: socket) -> None:
    from steerling_jax.attribution.explorer.app import Site
    from steerling_jax.attribution.explorer.run import serve
    from steerling_jax.attribution.explorer.security import new_token
    from steerling_jax.attribution.explorer.settings import ExplorerSettings
    from steerling_jax.cli.console import note
    from steerling_jax.infer.server.listening import http_address

    # Autoencoders can be of another model or block, which is reported before the page is there.
    loaded = _load_model(args) if args.autoencoders else None
    token = None if args.no_token or _is_loopback(args.host) else new_token()
    settings = ExplorerSettings(args.host, tuple(args.allow_host), token, args.max_new_tokens_limit)
    address = f"{http_address(listening)}/" + ("" if token is None else f"#token={token}")
    note(f"The explorer is at {address} (Ctrl-C to stop).")
    if args.open:
        import webbrowser

        webbrowser.open(address)
    site = Site(settings, _loader(args, settings, loaded))
    serve(site, listening, args.grace, lambda: note("The model is ready."))


def _load_model(args: argparse.Namespace) -> Loaded:
    """The model, with the features of its autoencoders in its catalogue, and these."""
    autoencoders = load_autoencoders(args)
    import steerling_jax as sj

    return with_autoencoders(sj.load(args.model), autoencoders), autoencoders


def _loader(args: argparse.Namespace, settings: ExplorerSettings, loaded: Loaded | None) -> Load:
    """The function that loads the model if it is not `loaded`, on a thread, while the page is shown already."""

    def load(counts):
        from steerling_jax.attribution.explorer.api import ModelApi
        from steerling_jax.attribution.explorer.index_job import IndexMaker, default_folder
        from steerling_jax.attribution.explorer.service import Explorer
        from steerling_jax.attribution.explorer.texts import Model
        from steerling_jax.attribution.explorer.training_data import open_training_data
        from steerling_jax.decoding.decoder import decoder_of
        from steerling_jax.infer.server.engine import Engine
        from steerling_jax.infer.server.warm_up import warm_up
        from steerling_jax.io.trace_file import model_origin

        bundle, autoencoders = loaded or _load_model(args)
        data, maker = None, None
        if args.index is not None:
            data = open_training_data(args.index, args.corpus, bundle)
        elif args.model is None:  # whose training data is the documentation of this Python
            with contextlib.suppress(RuntimeError):  # without a home folder there is no place for an index
                maker = IndexMaker(default_folder(bundle), bundle)
                data = maker.made()
        decoder = decoder_of(bundle, rows=args.rows, prefix_cache_bytes=_PREFIX_CACHE, room=_SHORT)
        # Sampling alone: greedy decoding is compiled when the first text asks for it. A step a call, so that the page
        # shows every step.
        engine = Engine(decoder, warm_up(decoder, greedy=False, record_hidden=True), steps=1)
        explorer = Explorer(Model(bundle, model_origin(bundle), autoencoders), engine, data, maker)
        return ModelApi(explorer, settings, counts)

    return load


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
