#!/usr/bin/env bash
# Requests a TPU pod as a queued resource, and waits until it is active.
usage() {
  cat <<'TEXT'
create.sh NAME --accelerator v5litepod-256 --zone ZONE --project PROJECT [--slices N] [--spot | --reserved]
          [--runtime IMAGE] [--dry-run]

Requests a TPU pod as a queued resource, and waits until it is active.

TPU_POLL_SECONDS   between two queries of the state (default: 30)
TEXT
}
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "$0")/lib.sh"
read_options "$@"
require name place accelerator
reject_reservation

image=$(runtime)
node_options=(--node-id="$NAME")
if ((SLICES > 1)); then
  node_options=(--node-count="$SLICES" --node-prefix="$NAME")
fi
queued create --accelerator-type="$ACCELERATOR" --runtime-version="$image" "${node_options[@]}" "${KIND[@]}"
[[ -z $DRY_RUN ]] || exit 0
while true; do
  current=$(state) || exit
  case $current in
    ACTIVE) break ;;
    FAILED | SUSPEND* | NONE) fail "The request for $NAME is $current; remove it with delete.sh." ;;
  esac
  log "$NAME is $current"
  sleep "${TPU_POLL_SECONDS:-30}"
done
log "$NAME is ACTIVE"
