#!/usr/bin/env bash
# Deletes a pod: the queued resource and its machines, with their disks.
usage() {
  cat <<'TEXT'
delete.sh NAME --zone ZONE --project PROJECT [--dry-run]

Deletes a pod: the queued resource and its machines, with their disks.
TEXT
}
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "$0")/lib.sh"
read_options "$@"
require name place

queued delete --force --quiet
