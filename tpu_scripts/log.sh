#!/usr/bin/env bash
# Prints the last lines of the command's output on every host of a pod, and its exit code once it has finished.
usage() {
  cat <<'TEXT'
log.sh NAME --zone ZONE --project PROJECT [--slices N] [--dry-run]

Prints the last lines of the command's output on every host of a pod, and its exit code once it has finished.

TPU_LOG_LINES   lines per host (default: 10)
TEXT
}
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "$0")/lib.sh"
read_options "$@"
require name place

# shellcheck disable=SC2016 # expanded on the hosts
shown='echo "== $(hostname)"; cd ~/steerling && tail -n LINES log && { [ ! -f code ] || echo "exit code $(cat code)"; }'
on_all_hosts "${shown/LINES/${TPU_LOG_LINES:-10}}"
