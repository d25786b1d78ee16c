#!/usr/bin/env bash
# Starts a command on every host of a pod, in ~/steerling with its environment, and leaves it running there, in place of
# one that still runs. Its output is in ~/steerling/log, its exit code in ~/steerling/code once it has ended.
usage() {
  cat <<'TEXT'
run.sh NAME --zone ZONE --project PROJECT [--slices N] [--dry-run] -- COMMAND…

run.sh my-pod … -- steerling train --config /shared/my_config.py --distributed --out /shared/run
TEXT
}
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "$0")/lib.sh"
read_options "$@"
need name place command

inside="echo \$\$ > group; source .venv/bin/activate; $(quoted "${COMMAND[@]}") > log 2>&1; echo \$? > code"
# shellcheck disable=SC2016 # for the shell there
before='{ [ ! -f group ] || kill -- "-$(cat group)" 2>/dev/null || true; }; rm -f code group'
started='until [ -f group ]; do sleep 0.1; done'
on_all_hosts "cd ~/steerling && $before && { nohup setsid bash -c $(quoted "$inside") > /dev/null 2>&1 & } && $started"
