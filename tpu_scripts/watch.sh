#!/usr/bin/env bash
# Keeps a command running on a pod: makes the pod again after a preemption, sets it up, and starts the command, which
# has to go on by itself from what it saved. Ends when the command has ended well on every host.
usage() {
  cat <<'TEXT'
watch.sh NAME --accelerator TYPE --zone ZONE --project PROJECT [--slices N] [--spot | --reserved] [--dry-run] -- COMMAND…

TPU_SETUP_LINE     a shell line for each host before the installation (see setup.sh). It runs more than once on a host, so it
                   must not mind having run
TPU_POLL_SECONDS   between two looks (default: 30)
TEXT
}
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "$0")/lib.sh"
read_options "$@"
need name place accelerator command
no_reservation
runtime >/dev/null

here=$(dirname "$0")
place=(--zone "$ZONE" --project "$PROJECT" --slices "$SLICES" ${DRY_RUN:+--dry-run})

set_up() { "$here/setup.sh" "$NAME" "${place[@]}" ${TPU_SETUP_LINE:+-- "$TPU_SETUP_LINE"}; }

start() { "$here/run.sh" "$NAME" "${place[@]}" -- "${COMMAND[@]}"; }

make_again() {
  "$here/delete.sh" "$NAME" "${place[@]}" || true
  "$here/create.sh" "$NAME" "${place[@]}" --accelerator "$ACCELERATOR" ${RUNTIME:+--runtime "$RUNTIME"} "${KIND[@]}" &&
    set_up && start
}

start_anew() { set_up && start; }

# The worst exit code of all hosts; or "stopped" where it does not run on a host that has no exit code of it (a host that
# was started anew, or whose disk was full, or a pod where nothing was started yet); or "running"; or "lost" where a host
# does not answer.
progress() {
  local told
  # shellcheck disable=SC2016 # for the shell there
  told=$(on_all_hosts 'cd ~/steerling 2>/dev/null || { echo stopped; exit; }
    if [ -s code ]; then cat code; elif kill -0 -- "-$(cat group)"; then echo running; else echo stopped; fi 2>/dev/null') ||
    { printf lost && return; }
  awk '{ seen[$1] = 1 } /^[0-9]+$/ { if ($1 > worst) worst = $1 }
    END { print (worst > 0 ? worst : "stopped" in seen ? "stopped" : "running" in seen ? "running" : "0" in seen ? 0 : "lost") }
    ' <<<"$told"
}

if [[ -n $DRY_RUN ]]; then
  say "Looked at every ${TPU_POLL_SECONDS:-30} s; when the pod is gone:"
  make_again
  exit
fi
while true; do
  todo=()
  case $(state) in
    ACTIVE)
      case $(progress) in
        0) say "The command has ended on $NAME." && exit 0 ;;
        running | lost) ;;
        stopped) say "The command does not run on $NAME; setting it up and starting it." && todo=(start_anew) ;;
        *) say "The command failed on a host of $NAME; starting it again." && todo=(start) ;;
      esac
      ;;
    NONE | FAILED | SUSPENDED | SUSPENDING) say "$NAME is gone; making it again." && todo=(make_again) ;;
  esac
  ((!${#todo[@]})) || "${todo[@]}" || say "That failed; trying again."
  sleep "${TPU_POLL_SECONDS:-30}"
done
