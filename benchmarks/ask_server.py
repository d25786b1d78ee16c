"""A generator for `steerling sae cover`: sends the prompt on standard input to `steerling serve`.

    steerling serve --model MODEL --port 8000 --rows 1 --warm-up 0
    steerling sae cover data.jsonl … --generator "python benchmarks/ask_server.py http://127.0.0.1:8000 --seed {call}"

The model is loaded once, by the server, where `steerling generate -` would load it for each call.
"""

from __future__ import annotations

import argparse
import json
import sys
import urllib.error
import urllib.request


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--continue", action="store_true", dest="continuation",
                        help="let the model continue the prompt: for models without a chat template")  # fmt: skip
    args = parser.parse_args()
    body = {"max_tokens": args.max_tokens, "seed": args.seed, "temperature": args.temperature}
    prompt = sys.stdin.read()
    if args.continuation:
        place, body = "completions", body | {"prompt": prompt}
    else:
        place, body = "chat/completions", body | {"messages": [{"role": "user", "content": prompt}]}
    request = urllib.request.Request(
        f"{args.address}/v1/{place}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request) as answer:
            result = json.load(answer)
    except urllib.error.HTTPError as error:
        sys.exit(error.read().decode(errors="replace"))
    except OSError as error:
        sys.exit(f"{args.address}: {error}")
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    (choice,) = result["choices"]
    print(choice["text"] if args.continuation else choice["message"]["content"])


if __name__ == "__main__":
    main()
