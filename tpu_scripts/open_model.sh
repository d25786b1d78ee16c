#!/usr/bin/env bash
# Runs open_model.py on a TPU with one host, in the background: it loads an open model onto all chips, reads outputs of
# layers and writes a text.
usage() {
  cat <<'TEXT'
open_model.sh NAME --zone ZONE --project PROJECT [--dry-run] -- MODEL [OPTIONS of open_model.py]

Loads an open model onto all chips of a TPU with one host, reads outputs of layers and writes a text; log.sh shows what it
prints. MODEL is a Hub id, or the address of a model's folder in a bucket, for which the hosts need the extra gcs:

STEERLING_EXTRAS=tpu,gcs setup.sh my-tpu …
open_model.sh my-tpu … -- gs://my-bucket/Qwen3-8B --prompt 'A heron is' --layers 12 24
TEXT
}
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "$0")/lib.sh"
read_options "$@"
require name place command
((SLICES == 1)) || fail "Texts are written on the chips of one host; leave --slices out."

here=$(dirname "$0")
run gcloud compute tpus tpu-vm scp "$here/open_model.py" "$NAME:steerling/open_model.py" --zone="$ZONE" \
  --project="$PROJECT" --worker=all
"$here/run.sh" "$NAME" --zone "$ZONE" --project "$PROJECT" ${DRY_RUN:+--dry-run} -- python open_model.py "${COMMAND[@]}"
