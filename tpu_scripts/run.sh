#!/usr/bin/env bash
# Starts a command in the background on every host of a pod, in ~/steerling with its virtual environment. A previous
# command that still runs is stopped first, with time to save. The output is in ~/steerling/log (that of the previous
# command in log.before), the exit code in ~/steerling/code once it has finished.
usage() {
  cat <<'TEXT'
run.sh NAME --zone ZONE --project PROJECT [--slices N] [--dry-run] -- COMMAND…

Starts a command in the background on every host of a pod; log.sh shows its output. A previous command that still runs
is stopped first.

run.sh my-pod … -- steerling train --config /shared/my_config.py --distributed --out /shared/run

TPU_STOP_SECONDS   how long the previous command may take to stop before it is killed (default: 300)
TEXT
}
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "$0")/lib.sh"
read_options "$@"
require name place command

inside="echo \$\$ > group; source .venv/bin/activate; $(quoted "${COMMAND[@]}") > log 2>&1; echo \$? > code.new && mv code.new code"
gone="kill -0 -- -\$group 2>/dev/null || break; sleep 1"
stop="group=\$(cat group); kill -- -\$group 2>/dev/null; for i in \$(seq ${TPU_STOP_SECONDS:-300}); do $gone; done"
before="{ if [ -f group ]; then $stop; kill -9 -- -\$group 2>/dev/null; fi; [ ! -f log ] || mv log log.before; rm -f code group; }"
started='until [ -s group ]; do sleep 0.1; done' # not empty: it is created before it is written
on_all_hosts "cd ~/steerling && $before && { nohup setsid bash -c $(quoted "$inside") > /dev/null 2>&1 & } && $started"
