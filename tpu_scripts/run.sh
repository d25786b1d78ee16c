#!/usr/bin/env bash
# Starts a command on every host of a pod, in ~/steerling with its environment, and leaves it running there, in place of
# one that still runs, which has time to save first. Its output is in ~/steerling/log (that of the command before in
# log.before), its exit code in ~/steerling/code once it has ended.
usage() {
  cat <<'TEXT'
run.sh NAME --zone ZONE --project PROJECT [--slices N] [--dry-run] -- COMMAND…

run.sh my-pod … -- steerling train --config /shared/my_config.py --distributed --out /shared/run

TPU_STOP_SECONDS   how long the command before may take to end once it is asked to (default: 300)
TEXT
}
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "$0")/lib.sh"
read_options "$@"
need name place command

inside="echo \$\$ > group; source .venv/bin/activate; $(quoted "${COMMAND[@]}") > log 2>&1; echo \$? > code.new && mv code.new code"
gone="kill -0 -- -\$group 2>/dev/null || break; sleep 1"
stop="group=\$(cat group); kill -- -\$group 2>/dev/null; for i in \$(seq ${TPU_STOP_SECONDS:-300}); do $gone; done"
before="{ if [ -f group ]; then $stop; kill -9 -- -\$group 2>/dev/null; fi; [ ! -f log ] || mv log log.before; rm -f code group; }"
started='until [ -f group ]; do sleep 0.1; done'
on_all_hosts "cd ~/steerling && $before && { nohup setsid bash -c $(quoted "$inside") > /dev/null 2>&1 & } && $started"
