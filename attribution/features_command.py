"""`steerling features`: the features behind each token of a text, their pages, those that tell texts apart, those of
repetition, passages that have the features of a text, and a catalogue of all."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerling_jax.attribution.features.texts import Texts, read_corpus, read_lines
from steerling_jax.cli.arguments import add_model_option, number_in_range
from steerling_jax.errors import UserError, require

if TYPE_CHECKING:
    from steerling_jax.autoencoders.autoencoder import Autoencoder
    from steerling_jax.bundle import Bundle

HELP = """\
Show features: those behind a text's tokens, what one is about, those that tell texts apart, texts with the same ones.

examples:
  steerling features "The capital of France is Paris." --model ./runs/smollm2/export
  steerling features "The capital of France is" --model ./runs/smollm2/export --max-new-tokens 12
  steerling features "The capital of France is Paris." --model MODEL --autoencoder layers.3 --feature 17
  steerling features --feature 17 --feature 204 --text texts.txt --model ./runs/smollm2/export --html pages.html
  steerling features --positive polite.txt --negative rude.txt --model MODEL --autoencoder ./runs/sae/export/layers.3
  steerling features --repetition 8 --text texts.txt --model MODEL --autoencoder ./runs/sae/export/layers.3
  steerling features --like "Return a list of words" --corpus ./corpus --autoencoder ./runs/sae/export/layers.3
  steerling features --catalogue layers.3/features.json --corpus ./corpus --autoencoder layers.3
"""


def configure(parser: argparse.ArgumentParser) -> None:
    add, count = parser.add_argument, number_in_range(int, 1)
    add(
        "prompt",
        nargs="?",
        metavar="TEXT",
        help="a text that comes apart into the features of a bottleneck or of the last block; with one --feature, "
        "where it is active and which tokens that came from",
    )
    add_model_option(parser)
    add("--autoencoder", metavar="PATH", help="an autoencoder of the model's layers (default: the model's bottleneck)")
    add("--k", type=count, metavar="N", help="features of a token, where the autoencoder's files do not say it")
    add("--layer", type=number_in_range(int, 0), metavar="N", help="the block that the autoencoder reads, from 0")
    add("--max-new-tokens", type=count, metavar="N", help="continue TEXT first, greedily")
    add("--feature", type=number_in_range(int, 0), action="append", metavar="ID", help="show this feature's page")
    add(
        "--repetition",
        type=count,
        metavar="N",
        help="rank features by their rise from a token's first to its last occurrence, in the beginnings of the texts "
        "repeated N times; 1 reads the texts as they are",
    )
    add("--like", metavar="TEXT", help="find the passages whose features are most like those of this text")
    add("--catalogue", metavar="FILE", help="write names, densities and largest latents of all features here")
    add("--text", metavar="FILE", help="texts, one a line, that are read for pages, --repetition, --like, --catalogue")
    add("--corpus", metavar="FOLDER", help="a corpus store whose training documents are read in place of --text")
    add("--tokens", type=count, default=200_000, metavar="N", help="of the corpus to read (default: %(default)s)")
    add("--positive", metavar="FILE", help="texts, one a line, in which the wanted features fire")
    add("--negative", metavar="FILE", help="texts, one a line, in which they do not")
    add("--limit", type=count, metavar="N", help="features of a token (3), passages (5) or ranked features (10) shown")
    add("--words", type=count, default=4, metavar="N", help="tokens shown of a feature (default: %(default)s)")
    add(
        "--reference",
        choices=("model", "raw"),
        default="model",
        help="split the logit minus its mean under the model, or the logit itself (default: %(default)s)",
    )
    add("--html", metavar="FILE", help="write the pages as one HTML file, which works offline")
    add("--neuronpedia", metavar="FILE", help="write the pages as a batch of Neuronpedia's dashboards (JSON)")
    add("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> None:
    use = _use(args)
    import steerling_jax as sj

    bundle = sj.load(args.model)
    use(bundle, _autoencoder(bundle, args), args)


def _use(args: argparse.Namespace) -> Any:
    """What the options request. Raises `UserError` for none, for several, and for what they lack."""
    on_text = args.prompt is not None
    uses = {
        _contributions: on_text and not args.feature,
        _activation: on_text and bool(args.feature),
        _pages: not on_text and bool(args.feature),
        _contrast: bool(args.positive or args.negative),
        _repetition: args.repetition is not None,
        _search: args.like is not None,
        _catalogue: args.catalogue is not None,
    }
    requested = [use for use, given in uses.items() if given]
    if len(requested) != 1:
        raise UserError(
            "Give one of TEXT, --feature, --repetition, --like and --catalogue with --text or --corpus, --positive "
            "with --negative."
        )
    (use,) = requested
    for given, missing, name in (
        (args.positive, args.negative, "--positive needs --negative"),
        (args.negative, args.positive, "--negative needs --positive"),
    ):
        require(not given or bool(missing), f"{name}, a file of texts.")
    names = {_pages: "--feature", _repetition: "--repetition", _search: "--like", _catalogue: "--catalogue"}
    if (name := names.get(use)) is not None:
        require(bool(args.text or args.corpus), f"{name} needs --text, a file of texts, or --corpus.")
        require(not (args.text and args.corpus), "--text and --corpus are both given; give one of them.")
    for given, name in ((args.html, "--html"), (args.neuronpedia, "--neuronpedia")):
        require(given is None or use is _pages, f"{name} is for pages; give it with --feature and without TEXT.")
    require(use is not _activation or len(args.feature) == 1, "TEXT takes one --feature; give one.")
    return use


def _autoencoder(bundle: Bundle, args: argparse.Namespace) -> Autoencoder:
    import steerling_jax as sj
    from steerling_jax.autoencoders.bottleneck import bottleneck_of
    from steerling_jax.autoencoders.model_fit import check_fits

    if args.autoencoder is None:
        return bottleneck_of(bundle)
    autoencoder = sj.load_autoencoder(args.autoencoder, k=args.k, layer=args.layer)
    check_fits(autoencoder, bundle)
    return autoencoder


def _texts(bundle: Bundle, args: argparse.Namespace) -> Texts:
    return read_lines(args.text) if args.text else read_corpus(args.corpus, bundle, args.tokens)


def _ids(bundle: Bundle, args: argparse.Namespace) -> Any:
    """TEXT, or the ids of it and of what the model continues it with."""
    if not args.max_new_tokens:
        return args.prompt
    import steerling_jax as sj

    config = sj.GenerationConfig(max_new_tokens=args.max_new_tokens, temperature=0.0)
    return sj.generate(bundle, args.prompt, config).tokens


def _contributions(bundle: Bundle, autoencoder: Autoencoder, args: argparse.Namespace) -> None:
    import steerling_jax as sj
    from steerling_jax.attribution.features.plain import contributions_as_json
    from steerling_jax.attribution.features.terminal import show_contributions
    from steerling_jax.cli.console import print_json

    given = None if args.autoencoder is None else autoencoder  # without the option it is the model's bottleneck
    parts = sj.feature_contributions(
        bundle, _ids(bundle, args), autoencoder=given, reference=args.reference, words=args.words
    )
    if args.json:
        print_json(contributions_as_json(parts))
    else:
        show_contributions(parts, args.limit or 3)


def _activation(bundle: Bundle, autoencoder: Autoencoder, args: argparse.Namespace) -> None:
    from steerling_jax.attribution.features.terminal import show_activation
    from steerling_jax.cli.console import print_json
    from steerling_jax.explain.features.activation import explain_activation

    found = explain_activation(bundle, autoencoder, args.feature[0], _ids(bundle, args))
    if args.json:
        print_json(found)
    else:
        show_activation(found, args.limit or 5)


def _pages(bundle: Bundle, autoencoder: Autoencoder, args: argparse.Namespace) -> None:
    from steerling_jax.attribution.features.page import make_page
    from steerling_jax.attribution.features.plain import page_as_json
    from steerling_jax.attribution.features.terminal import show_pages
    from steerling_jax.cli.console import print_json, stages
    from steerling_jax.explain.features.neuronpedia import neuronpedia_batch
    from steerling_jax.explain.features.pages import feature_pages
    from steerling_jax.io.atomic import atomic_path, resolve_output
    from steerling_jax.io.json_files import write_json

    for path in (args.html, args.neuronpedia):
        if path is not None:
            resolve_output(path)  # raises before the texts are read
    texts = _texts(bundle, args)
    with stages() as progress:
        pages = feature_pages(bundle, autoencoder, args.feature, texts.texts, passages=args.limit or 5,
                              words=max(args.words, 8), progress=progress)  # fmt: skip
    of = Path(args.autoencoder or bundle.name).name
    name = of if args.autoencoder else f"the bottleneck of {of}"
    if args.html is not None:
        page = make_page(pages, texts.places, f"Features of {name}")
        with atomic_path(args.html) as path:
            path.write_text(page, encoding="utf-8", errors="backslashreplace")
    if args.neuronpedia is not None:
        layer = bundle.backbone.n_layers if autoencoder.layer is None else autoencoder.layer
        batch = neuronpedia_batch(pages, model=bundle.name, layer=layer, name=name, texts=texts.name)
        write_json(args.neuronpedia, batch)
    if args.json:
        print_json({"pages": [page_as_json(page, texts.places) for page in pages]})
    else:
        show_pages(pages, texts.places)


def _contrast(bundle: Bundle, autoencoder: Autoencoder, args: argparse.Namespace) -> None:
    from steerling_jax.attribution.features.plain import contrast_as_json
    from steerling_jax.attribution.features.terminal import show_contrast
    from steerling_jax.cli.console import print_json, stages
    from steerling_jax.explain.feature_texts import contrast_features

    sets = read_lines(args.positive).texts, read_lines(args.negative).texts
    with stages() as progress:
        contrast = contrast_features(bundle, autoencoder, *sets, count=args.limit or 10, words=args.words,
                                     progress=progress)  # fmt: skip
    if args.json:
        print_json({"features": contrast_as_json(contrast)})
    else:
        show_contrast(contrast)


def _repetition(bundle: Bundle, autoencoder: Autoencoder, args: argparse.Namespace) -> None:
    from steerling_jax.attribution.features.plain import repetition_as_json
    from steerling_jax.attribution.features.terminal import show_repetition
    from steerling_jax.cli.console import print_json, stages
    from steerling_jax.explain.features.repetition import repetition_features

    texts = _texts(bundle, args)
    with stages() as progress:
        found = repetition_features(bundle, autoencoder, texts.texts, times=args.repetition, count=args.limit or 10,
                                    words=args.words, progress=progress)  # fmt: skip
    if args.json:
        print_json(repetition_as_json(found))
    else:
        show_repetition(found)


def _search(bundle: Bundle, autoencoder: Autoencoder, args: argparse.Namespace) -> None:
    from steerling_jax.attribution.features.plain import hits_as_json
    from steerling_jax.attribution.features.terminal import show_hits
    from steerling_jax.cli.console import print_json, stages
    from steerling_jax.explain.features.search import search_by_features

    texts = _texts(bundle, args)
    with stages() as progress:
        hits = search_by_features(bundle, autoencoder, args.like, texts.texts, count=args.limit or 5,
                                  progress=progress)  # fmt: skip
    if args.json:
        print_json({"passages": hits_as_json(hits, texts.places)})
    else:
        show_hits(hits, texts.places)


def _catalogue(bundle: Bundle, autoencoder: Autoencoder, args: argparse.Namespace) -> None:
    from steerling_jax.attribution.features.terminal import show_counts
    from steerling_jax.cli.console import print_json, stages
    from steerling_jax.explain.feature_texts import text_latents
    from steerling_jax.explain.features.names import name_features
    from steerling_jax.io.atomic import resolve_output
    from steerling_jax.io.catalogue import write_entries

    resolve_output(args.catalogue)
    texts = _texts(bundle, args)
    with stages() as progress:
        parts = list(text_latents(bundle, autoencoder, texts.texts, progress))
        entries = name_features(bundle, autoencoder, range(autoencoder.n_latents), parts, progress=progress)
    write_entries(args.catalogue, entries)
    scored = [one.quality for one in entries if one.quality is not None]
    counts = {
        "catalogue": args.catalogue,
        "features": len(entries),
        "active": sum(1 for one in entries if one.largest),
        "scored": len(scored),
        "named": sum(one.is_named for one in entries),
        "mean_auc": sum(one.auc for one in scored) / len(scored) if scored else None,
        "mean_others": sum(one.others or 0.5 for one in scored) / len(scored) if scored else None,
    }
    if args.json:
        print_json(counts)
    else:
        show_counts(counts)
