#!/usr/bin/env bash
# Installs steerling-jax on every host of a pod, in ~/steerling/.venv. Each host first runs the shell command after --,
# for example to mount the folder that all of them share.
usage() {
  cat <<'TEXT'
setup.sh NAME --zone ZONE --project PROJECT [--slices N] [--dry-run] [-- SHELL COMMAND]

Installs steerling-jax on every host of a pod. SHELL COMMAND runs on each host before the installation, at every
set-up, so it must be safe to repeat:

setup.sh my-pod … -- 'mountpoint -q /shared || { sudo mkdir -p /shared && sudo mount -t nfs 10.0.0.2:/share /shared; }'

STEERLING_SOURCE   the package to install (default: steerling-jax[tpu] from this checkout's origin)
TEXT
}
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "$0")/lib.sh"
read_options "$@"
require name place

if [[ -z ${STEERLING_SOURCE:-} ]]; then
  here=$(dirname "$0")
  origin=$(git -C "$here" remote get-url origin 2>/dev/null) || fail "This checkout has no remote named origin; set STEERLING_SOURCE."
  STEERLING_SOURCE="steerling-jax[tpu] @ git+${origin/git@github.com:/https://github.com/}@$(git -C "$here" rev-parse HEAD)"
fi
# The Python of the hosts' images may be too old; uv installs one.
line="mkdir -p ~/steerling && cd ~/steerling && python3 -m pip install --quiet --user uv \
&& ~/.local/bin/uv venv --quiet --clear --python 3.12 .venv \
&& ~/.local/bin/uv pip install --quiet --python .venv/bin/python $(quoted "$STEERLING_SOURCE")"
on_all_hosts "${COMMAND[*]:+${COMMAND[*]} && }$line"
