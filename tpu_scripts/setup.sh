#!/usr/bin/env bash
# Installs steerling-jax on every host of a pod, in ~/steerling/.venv. Each host first runs the shell command after --,
# for example to mount the folder that all of them share.
usage() {
  cat <<'TEXT'
setup.sh NAME --zone ZONE --project PROJECT [--slices N] [--dry-run] [-- SHELL COMMAND]

Installs steerling-jax on every host of a pod. SHELL COMMAND runs on each host before the installation, at every
set-up, so it must be safe to repeat:

setup.sh my-pod … -- 'mountpoint -q /shared || { sudo mkdir -p /shared && sudo mount -t nfs 10.0.0.2:/share /shared; }'

STEERLING_EXTRAS   its extras (default: tpu); tpu,gcs also reads models and corpora in a bucket
STEERLING_SOURCE   the package to install, with its extras (default: this checkout's commit from its origin)
TEXT
}
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "$0")/lib.sh"
read_options "$@"
require name place

# Whether an address can be reached from another machine: a URL or `host:path`, but no folder and no `file:` URL.
reachable() { [[ ($1 == *://* || $1 =~ ^[^/]+:) && $1 != file:* ]]; }

# Fails, or with --dry-run, says so and continues.
unreachable() {
  [[ -n $DRY_RUN ]] || fail "$1; set STEERLING_SOURCE."
  log "warning: $1; set STEERLING_SOURCE."
}

if [[ -z ${STEERLING_SOURCE:-} ]]; then
  here=$(dirname "$0")
  origin=$(git -C "$here" remote get-url origin 2>/dev/null) || fail "This checkout has no remote named origin; set STEERLING_SOURCE."
  reachable "$origin" || unreachable "The origin of this checkout is $origin, a folder of this machine that the hosts cannot reach"
  [[ -n $(git -C "$here" branch --remotes --contains HEAD) ]] ||
    log "warning: The commit that is checked out here is in no branch of origin, as far as known; the hosts fetch it from there."
  STEERLING_SOURCE="steerling-jax[${STEERLING_EXTRAS:-tpu}] @ git+${origin/git@github.com:/https://github.com/}@$(git -C "$here" rev-parse HEAD)"
fi
case ${STEERLING_SOURCE#*@ } in
  . | ./* | .. | ../* | .\[*) unreachable "STEERLING_SOURCE is $STEERLING_SOURCE, a path relative to this folder, which the hosts do not have" ;;
  /* | file:*) log "STEERLING_SOURCE is $STEERLING_SOURCE, so every host must have this folder, for example mounted." ;;
esac
# The Python of the hosts' images may be too old; uv installs one.
line="mkdir -p ~/steerling && cd ~/steerling && python3 -m pip install --quiet --user uv \
&& ~/.local/bin/uv venv --quiet --clear --python 3.12 .venv \
&& ~/.local/bin/uv pip install --quiet --python .venv/bin/python $(quoted "$STEERLING_SOURCE")"
on_all_hosts "${COMMAND[*]:+${COMMAND[*]} && }$line"
