"""`steerling sae`: the group of commands that use the features of sparse autoencoders."""

from __future__ import annotations

HELP = """\
Use features of sparse autoencoders: compare benchmarks, classify texts, cover features, find those of languages.

examples:
  steerling sae compare gsm8k.jsonl mmlu.jsonl --autoencoder ./runs/sae_pydocs/export
  steerling sae classify texts.csv --autoencoder ./runs/sae_pydocs/export
  steerling sae cover data.jsonl --autoencoder ./runs/sae_pydocs/export --about sockets
  steerling sae languages parallel.csv --model ./model --autoencoder ./runs/sae/export --save languages.json
"""

SUBCOMMANDS = {
    "compare": "steerling_jax.attribution.sae.compare_command",
    "classify": "steerling_jax.attribution.sae.classify_command",
    "cover": "steerling_jax.attribution.sae.cover_command",
    "languages": "steerling_jax.attribution.sae.languages_command",
}
