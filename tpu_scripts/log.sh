#!/usr/bin/env bash
# Shows the end of the command's output on every host of a pod, and its exit code where it has ended.
usage() {
  cat <<'TEXT'
log.sh NAME --zone ZONE --project PROJECT [--slices N] [--dry-run]

TPU_LOG_LINES   of each host (default: 10)
TEXT
}
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "$0")/lib.sh"
read_options "$@"
need name place

# shellcheck disable=SC2016 # for the shell there
shown='echo "== $(hostname)"; cd ~/steerling && tail -n LINES log && { [ ! -f code ] || echo "ended with $(cat code)"; }'
on_all_hosts "${shown/LINES/${TPU_LOG_LINES:-10}}"
