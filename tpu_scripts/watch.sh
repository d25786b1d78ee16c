#!/usr/bin/env bash
# Keeps a command running on a pod: makes the pod again after a preemption, sets it up, and starts the command, which
# has to go on by itself from what it saved. Ends when the command has ended well on every host.
usage() {
  cat <<'TEXT'
watch.sh NAME --accelerator TYPE --zone ZONE --project PROJECT [--slices N] [--spot | --reserved] [--dry-run] -- COMMAND…

TPU_SETUP_LINE     a shell line for each host before the installation (see setup.sh)
TPU_POLL_SECONDS   between two looks (default: 30)
TEXT
}
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "$0")/lib.sh"
read_options "$@"
need name place accelerator command
runtime >/dev/null

here=$(dirname "$0")
place=(--zone "$ZONE" --project "$PROJECT" --slices "$SLICES" ${DRY_RUN:+--dry-run})

make_again() {
  "$here/delete.sh" "$NAME" "${place[@]}" || true
  "$here/create.sh" "$NAME" "${place[@]}" --accelerator "$ACCELERATOR" ${RUNTIME:+--runtime "$RUNTIME"} "${KIND[@]}"
  "$here/setup.sh" "$NAME" "${place[@]}" ${TPU_SETUP_LINE:+-- "$TPU_SETUP_LINE"}
}

start() { "$here/run.sh" "$NAME" "${place[@]}" -- "${COMMAND[@]}"; }

# "running", or the worst exit code of all hosts.
progress() {
  on_all_hosts 'cat ~/steerling/code 2>/dev/null || echo running' |
    awk '/running/ { running = 1 } /^[0-9]+$/ { if ($1 > worst) worst = $1 } END { print (worst > 0 ? worst : (running ? "running" : 0)) }'
}

if [[ -n $DRY_RUN ]]; then
  say "Looked at every ${TPU_POLL_SECONDS:-30} s; when the pod is gone:"
  make_again
  start
  exit
fi
while true; do
  case $(state) in
    ACTIVE)
      case $(progress || printf lost) in
        0) say "The command has ended on $NAME." && exit 0 ;;
        running | lost) ;;
        *) say "The command failed on a host of $NAME; starting it again." && start ;;
      esac
      ;;
    NONE | FAILED | SUSPENDED | SUSPENDING)
      say "$NAME is gone; making it again."
      make_again && start
      ;;
  esac
  sleep "${TPU_POLL_SECONDS:-30}"
done
