#!/usr/bin/env bash
# Keeps a command running on a pod: after a preemption it creates the pod again, sets it up and starts the command,
# which must resume from what it saved. Exits when the command has succeeded on every host, when it reported invalid input
# (exit code 2), when the pod was suspended without a preemption, or when gcloud cannot be used.
usage() {
  cat <<'TEXT'
watch.sh NAME --accelerator TYPE --zone ZONE --project PROJECT [--slices N] [--spot | --reserved] [--dry-run] -- COMMAND…

Keeps a command running on a pod, which is created again after a preemption. The command must resume from what it saved.
An exit code of 2, invalid input, ends the watch. A pod without --spot cannot be preempted: if it is suspended, this is
reported, and the pod is left as it is.

TPU_SETUP_LINE     a shell command for each host before the installation (see setup.sh); it must be safe to repeat
TPU_POLL_SECONDS   between two queries of the state (default: 30)
TEXT
}
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "$0")/lib.sh"
read_options "$@"
require name place accelerator command
reject_reservation
runtime >/dev/null

here=$(dirname "$0")
place=(--zone "$ZONE" --project "$PROJECT" --slices "$SLICES" ${DRY_RUN:+--dry-run})

set_up() { "$here/setup.sh" "$NAME" "${place[@]}" ${TPU_SETUP_LINE:+-- "$TPU_SETUP_LINE"}; }

start() { "$here/run.sh" "$NAME" "${place[@]}" -- "${COMMAND[@]}"; }

recreate() {
  "$here/delete.sh" "$NAME" "${place[@]}" || true
  "$here/create.sh" "$NAME" "${place[@]}" --accelerator "$ACCELERATOR" ${RUNTIME:+--runtime "$RUNTIME"} "${KIND[@]}" &&
    set_up && start
}

set_up_and_start() { set_up && start; }

# Prints 2 where any host has this exit code (the others may have been stopped for it); else the highest exit code of all
# hosts if it is not 0; else "stopped" where a host has neither a running command
# nor an exit code (it was rebooted, its disk was full, or nothing was started yet); else "running"; else 0; "lost" where
# a host does not answer.
command_state() {
  local states
  # shellcheck disable=SC2016 # expanded on the hosts
  states=$(on_all_hosts 'cd ~/steerling 2>/dev/null || { echo stopped; exit; }
    if [ -s code ]; then cat code; elif kill -0 -- "-$(cat group)"; then echo running; else echo stopped; fi 2>/dev/null') ||
    { printf lost && return; }
  awk '{ seen[$1] = 1 } /^[0-9]+$/ { if ($1 > worst) worst = $1 }
    END { print ("2" in seen ? 2 : worst > 0 ? worst : "stopped" in seen ? "stopped" : "running" in seen ? "running" : "0" in seen ? 0 : "lost") }
    ' <<<"$states"
}

if [[ -n $DRY_RUN ]]; then
  log "The state is queried every ${TPU_POLL_SECONDS:-30} s; when the pod is gone, this runs:"
  recreate
  exit
fi
while true; do
  action=()
  current=$(state) || exit
  case $current in
    ACTIVE)
      case $(command_state) in
        0) log "The command has finished on $NAME." && exit 0 ;;
        2)
          "$here/log.sh" "$NAME" "${place[@]}" >&2 || true
          fail "The command reported invalid input on a host of $NAME (exit code 2, see above); correct it and start again."
          ;;
        running | lost) ;;
        stopped) log "The command is not running on $NAME; setting up the pod and starting it." && action=(set_up_and_start) ;;
        *) log "The command failed on a host of $NAME; restarting it." && action=(start) ;;
      esac
      ;;
    SUSPENDED | SUSPENDING | SUSPENDED_BY_USER)
      if [[ $current == SUSPENDED_BY_USER || ${KIND[*]-} != *--spot* ]]; then
        fail "$NAME is suspended, which was no preemption; find out why, then remove it with delete.sh and start again."
      fi
      log "$NAME is gone; creating it again." && action=(recreate)
      ;;
    NONE | FAILED) log "$NAME is gone; creating it again." && action=(recreate) ;;
  esac
  ((!${#action[@]})) || "${action[@]}" || log "That failed; retrying."
  sleep "${TPU_POLL_SECONDS:-30}"
done
