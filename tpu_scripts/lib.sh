# shellcheck shell=bash
# Functions that the scripts share: options, --dry-run, and calls of gcloud. Sourced, not run.
set -euo pipefail

# shellcheck disable=SC2034 # some are used only by the scripts
NAME='' ZONE=${TPU_ZONE:-} PROJECT=${TPU_PROJECT:-} ACCELERATOR='' RUNTIME='' RESERVATION='' SLICES=1
KIND=() COMMAND=() DRY_RUN=''

log() { printf '%s\n' "$*" >&2; }

fail() {
  log "error: $*"
  exit 2
}

# Prints the arguments, quoted for a shell.
quoted() {
  local line
  printf -v line '%q ' "$@"
  printf '%s' "${line% }"
}

# Runs a command; with --dry-run, prints it instead.
run() {
  if [[ -n $DRY_RUN ]]; then
    printf '%s\n' "$(quoted "$@")"
  else
    "$@"
  fi
}

# Parses NAME [OPTIONS] [-- COMMAND…]. A script checks the ones that it needs with `require`.
read_options() {
  while (($#)); do
    case $1 in
      --zone | --project | --accelerator | --runtime | --reservation | --slices)
        (($# > 1)) || fail "$1 needs a value."
        printf -v "$(tr '[:lower:]' '[:upper:]' <<<"${1#--}")" '%s' "$2"
        shift 2
        ;;
      --spot | --reserved) KIND+=("$1") && shift ;;
      --dry-run) DRY_RUN=1 && shift ;;
      -h | --help) usage && exit 0 ;;
      --) shift && COMMAND=("$@") && break ;;
      -*) fail "There is no option $1; see --help." ;;
      *)
        [[ -z $NAME ]] || fail "There are two names, $NAME and $1; put the command after --."
        NAME=$1 && shift
        ;;
    esac
  done
  [[ $SLICES =~ ^[1-9][0-9]*$ ]] || fail "--slices is $SLICES; give a whole number of at least 1."
}

# Fails where one of these is missing: name, place (zone and project), accelerator, command.
require() {
  local option
  for option in "$@"; do
    case $option in
      name) [[ -n $NAME ]] || fail "Give the pod a name; see --help." ;;
      place) [[ -n $ZONE && -n $PROJECT ]] || fail "Give --zone and --project, or set TPU_ZONE and TPU_PROJECT." ;;
      accelerator) [[ -n $ACCELERATOR ]] || fail "Give --accelerator, for example v5litepod-256." ;;
      command) ((${#COMMAND[@]})) || fail "Give a command after --." ;;
    esac
  done
}

# --reservation is for gke.sh.
reject_reservation() {
  [[ -z $RESERVATION ]] || fail "A queued resource uses the project's reservation; give --reserved without a name."
}

# Prints the system image for the accelerator.
runtime() {
  if [[ -n $RUNTIME ]]; then
    printf '%s' "$RUNTIME"
    return
  fi
  case $ACCELERATOR in
    v4-*) printf tpu-ubuntu2204-base ;;
    v5litepod-*) printf v2-alpha-tpuv5-lite ;;
    v5p-*) printf v2-alpha-tpuv5 ;;
    v6e-*) printf v2-alpha-tpuv6e ;;
    tpu7x-*) fail "tpu7x is available only through GKE; use gke.sh." ;;
    *) fail "The image for $ACCELERATOR is unknown; give one with --runtime." ;;
  esac
}

# Prints the names of the pod's slices.
nodes() {
  if ((SLICES == 1)); then
    printf '%s\n' "$NAME"
  else
    seq -f "$NAME-%g" 0 $((SLICES - 1))
  fi
}

queued() { run gcloud compute tpus queued-resources "$1" "$NAME" --zone="$ZONE" --project="$PROJECT" "${@:2}"; }

# Prints the state of the request, as gcloud names it: NONE where there is no request, SUSPENDED_BY_USER where it was
# suspended by a person and not by a preemption, UNKNOWN where gcloud failed. NONE and UNKNOWN must not be confused:
# watch.sh creates a pod again when it is gone, but not when a query fails. Fails, with gcloud's own message, where no
# later query can succeed, for example because nobody is logged in: callers need `current=$(state) || exit`.
state() {
  local errors answer current initiator code=0
  errors=$(mktemp)
  answer=$(gcloud compute tpus queued-resources describe "$NAME" --zone="$ZONE" --project="$PROJECT" \
    --format='value(state.state,state.stateInitiator)' 2>"$errors") || code=$?
  read -r current initiator <<<"$answer" || true
  if ((code == 0)); then
    [[ $current != SUSPEND* || $initiator != USER ]] || current=SUSPENDED_BY_USER
  elif grep --quiet NOT_FOUND "$errors"; then
    current=NONE
  else
    cat "$errors" >&2
    current=UNKNOWN
    if ((code == 127)) || cannot_recover "$errors"; then
      rm -f "$errors"
      fail "gcloud cannot be used; its message is above."
    fi
  fi
  rm -f "$errors"
  printf '%s' "$current"
}

# Whether the messages of gcloud in a file are of an error that lasts: of the login, of permissions or of the request.
# A failed refresh of the login also advises `gcloud auth login`, but it may be due to the network.
cannot_recover() {
  grep --quiet --extended-regexp \
    'active account|invalid_grant|[Rr]eauthentication|UNAUTHENTICATED|PERMISSION_DENIED|SERVICE_DISABLED|INVALID_ARGUMENT' "$1" ||
    { grep --quiet 'gcloud auth login' "$1" && ! grep --quiet refreshing "$1"; }
}

# Runs a shell command on all hosts of all slices at the same time; fails where it fails on any host.
on_all_hosts() {
  local node waiting=() failed=0 process
  for node in $(nodes); do
    run gcloud compute tpus tpu-vm ssh "$node" --zone="$ZONE" --project="$PROJECT" --worker=all --command="$1" &
    waiting+=($!)
    [[ -z $DRY_RUN ]] || wait "$!" # to print them in order
  done
  for process in "${waiting[@]}"; do
    wait "$process" || failed=1
  done
  return "$failed"
}
