#!/usr/bin/env bash
# Asks for a pod of TPUs as a queued resource, and waits until it is there.
usage() {
  cat <<'TEXT'
create.sh NAME --accelerator v5litepod-256 --zone ZONE --project PROJECT [--slices N] [--spot | --reserved]
          [--runtime IMAGE] [--dry-run]
TEXT
}
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "$0")/lib.sh"
read_options "$@"
need name place accelerator
no_reservation

image=$(runtime)
which=(--node-id="$NAME")
if ((SLICES > 1)); then
  which=(--node-count="$SLICES" --node-prefix="$NAME")
fi
queued create --accelerator-type="$ACCELERATOR" --runtime-version="$image" "${which[@]}" "${KIND[@]}"
[[ -z $DRY_RUN ]] || exit 0
while now=$(state) && [[ $now != ACTIVE ]]; do
  case $now in
    FAILED | SUSPENDED | SUSPENDING | NONE) fail "The request for $NAME is $now; delete.sh removes it." ;;
  esac
  say "$NAME is $now"
  sleep "${TPU_POLL_SECONDS:-30}"
done
say "$NAME is ACTIVE"
