#!/usr/bin/env bash
# The same on Kubernetes, through xpk (pip install xpk): the only way to tpu7x. GKE makes machines again after a
# preemption and starts the command again, up to 1,000 times.
usage() {
  cat <<'TEXT'
gke.sh create CLUSTER --accelerator tpu7x-128 --zone ZONE --project PROJECT [--slices N]
              [--spot | --reservation RESERVATION] [--dry-run]
gke.sh run    CLUSTER --accelerator tpu7x-128 --zone ZONE --project PROJECT [--slices N] [--dry-run] -- COMMAND…
gke.sh list   CLUSTER --zone ZONE --project PROJECT [--dry-run]     the jobs, and how they are
gke.sh stop   CLUSTER --zone ZONE --project PROJECT [--dry-run]     ends the job
gke.sh delete CLUSTER --zone ZONE --project PROJECT [--dry-run]     gives the machines back, with all that runs there

STEERLING_WORKLOAD   name of the job (default: steerling)
TEXT
}
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "$0")/lib.sh"
action=${1:-}
[[ $action != -h && $action != --help ]] || { usage && exit 0; }
(($#)) || fail "Say what to do: create, run, list, stop or delete."
shift
read_options "$@"
need name place

where=(--cluster="$NAME" --zone="$ZONE" --project="$PROJECT")
job=${STEERLING_WORKLOAD:-steerling}
case $action in
  create)
    need accelerator
    [[ ${KIND[*]-} != *--reserved* ]] || fail "xpk asks for a reservation by name; give --reservation in place of --reserved."
    [[ -z $RESERVATION ]] || KIND+=(--reservation="$RESERVATION")
    run xpk cluster create "${where[@]}" --tpu-type="$ACCELERATOR" --num-slices="$SLICES" "${KIND[@]:---on-demand}"
    ;;
  run)
    need accelerator command
    root=$(cd "$(dirname "$0")/.." && pwd)
    run xpk workload create "${where[@]}" --workload="$job" --tpu-type="$ACCELERATOR" --num-slices="$SLICES" \
      --base-docker-image=python:3.12 --script-dir="$root" --max-restarts=1000 \
      --command="pip install --quiet '.[tpu]' && $(quoted "${COMMAND[@]}")"
    ;;
  list) run xpk workload list "${where[@]}" ;;
  stop) run xpk workload delete "${where[@]}" --workload="$job" ;;
  delete) run xpk cluster delete "${where[@]}" --force ;;
  *) fail "There is no action $action; create, run, list, stop or delete." ;;
esac
