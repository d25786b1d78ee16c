#!/usr/bin/env bash
# Creates a cluster of TPUs on Kubernetes and runs a command there, through xpk (pip install xpk). tpu7x is available
# only this way. After a preemption GKE creates new machines and restarts the command, up to 1,000 times.
usage() {
  cat <<'TEXT'
gke.sh create CLUSTER --accelerator tpu7x-128 --zone ZONE --project PROJECT [--slices N]
              [--spot | --reservation RESERVATION] [--dry-run]
gke.sh run    CLUSTER --accelerator tpu7x-128 --zone ZONE --project PROJECT [--slices N] [--dry-run] -- COMMAND…
gke.sh list   CLUSTER --zone ZONE --project PROJECT [--dry-run]     lists the jobs and their states
gke.sh stop   CLUSTER --zone ZONE --project PROJECT [--dry-run]     stops the job
gke.sh delete CLUSTER --zone ZONE --project PROJECT [--dry-run]     deletes the cluster and everything in it

STEERLING_WORKLOAD   name of the job (default: steerling)
TEXT
}
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "$0")/lib.sh"
action=${1:-}
[[ $action != -h && $action != --help ]] || { usage && exit 0; }
(($#)) || fail "Give an action: create, run, list, stop or delete."
shift
read_options "$@"
require name place

cluster=(--cluster="$NAME" --zone="$ZONE" --project="$PROJECT")
job=${STEERLING_WORKLOAD:-steerling}
case $action in
  create)
    require accelerator
    [[ ${KIND[*]-} != *--reserved* ]] || fail "xpk needs the name of the reservation; give --reservation NAME instead of --reserved."
    [[ -z $RESERVATION ]] || KIND+=(--reservation="$RESERVATION")
    run xpk cluster create "${cluster[@]}" --tpu-type="$ACCELERATOR" --num-slices="$SLICES" "${KIND[@]:---on-demand}"
    ;;
  run)
    require accelerator command
    root=$(cd "$(dirname "$0")/.." && pwd)
    run xpk workload create "${cluster[@]}" --workload="$job" --tpu-type="$ACCELERATOR" --num-slices="$SLICES" \
      --base-docker-image=python:3.12 --script-dir="$root" --max-restarts=1000 \
      --command="pip install --quiet '.[tpu]' && $(quoted "${COMMAND[@]}")"
    ;;
  list) run xpk workload list "${cluster[@]}" ;;
  stop) run xpk workload delete "${cluster[@]}" --workload="$job" ;;
  delete) run xpk cluster delete "${cluster[@]}" --force ;;
  *) fail "There is no action $action; give create, run, list, stop or delete." ;;
esac
