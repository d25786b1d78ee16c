#!/usr/bin/env bash
# Gives a pod back: the request and its machines, with all that is on their disks.
usage() {
  cat <<'TEXT'
delete.sh NAME --zone ZONE --project PROJECT [--dry-run]
TEXT
}
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "$0")/lib.sh"
read_options "$@"
need name place

queued delete --force --quiet
