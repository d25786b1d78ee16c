# shellcheck shell=bash
# What the scripts share: options, --dry-run, and the words of gcloud. Sourced, not run.
set -euo pipefail

# shellcheck disable=SC2034 # some are for the scripts alone
NAME='' ZONE=${TPU_ZONE:-} PROJECT=${TPU_PROJECT:-} ACCELERATOR='' RUNTIME='' RESERVATION='' SLICES=1
KIND=() COMMAND=() DRY_RUN=''

say() { printf '%s\n' "$*" >&2; }

fail() {
  say "error: $*"
  exit 2
}

# Words as a shell would read them.
quoted() {
  local line
  printf -v line '%q ' "$@"
  printf '%s' "${line% }"
}

# Runs a command, or prints it where --dry-run was given.
run() {
  if [[ -n $DRY_RUN ]]; then
    printf '%s\n' "$(quoted "$@")"
  else
    "$@"
  fi
}

# NAME [OPTIONS] [-- COMMAND…]; what each script needs of them it checks with `need`.
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
        [[ -z $NAME ]] || fail "There are two names, $NAME and $1; quote the command after --."
        NAME=$1 && shift
        ;;
    esac
  done
  [[ $SLICES =~ ^[1-9][0-9]*$ ]] || fail "--slices is $SLICES; give a whole number."
}

need() {
  local option
  for option in "$@"; do
    case $option in
      name) [[ -n $NAME ]] || fail "Give the pod a name; see --help." ;;
      place) [[ -n $ZONE && -n $PROJECT ]] || fail "Give --zone and --project, or set TPU_ZONE and TPU_PROJECT." ;;
      accelerator) [[ -n $ACCELERATOR ]] || fail "Give --accelerator, v5litepod-256 say." ;;
      command) ((${#COMMAND[@]})) || fail "Give a command after --." ;;
    esac
  done
}

no_reservation() {
  [[ -z $RESERVATION ]] || fail "A queued resource finds the project's reservation itself; give --reserved."
}

# The system image that goes with an accelerator.
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
    tpu7x-*) fail "tpu7x is given out through GKE only; use gke.sh." ;;
    *) fail "No image is known for $ACCELERATOR; give one with --runtime." ;;
  esac
}

# Names of the pod's slices.
nodes() {
  if ((SLICES == 1)); then
    printf '%s\n' "$NAME"
  else
    seq -f "$NAME-%g" 0 $((SLICES - 1))
  fi
}

queued() { run gcloud compute tpus queued-resources "$1" "$NAME" --zone="$ZONE" --project="$PROJECT" "${@:2}"; }

# One of gcloud's words for where a request stands; NONE where there is no such request, UNKNOWN where gcloud could not
# tell. The two must not be taken for each other: what is gone is made again, after what is left of it was deleted.
state() {
  local errors found
  errors=$(mktemp)
  if found=$(gcloud compute tpus queued-resources describe "$NAME" --zone="$ZONE" --project="$PROJECT" \
    --format='value(state.state)' 2>"$errors"); then
    printf '%s' "$found"
  elif grep --quiet NOT_FOUND "$errors"; then
    printf NONE
  else
    printf UNKNOWN
  fi
  rm -f "$errors"
}

# Runs a shell line on every host of every slice at once; fails where one of them does.
on_all_hosts() {
  local node waiting=() failed=0 process
  for node in $(nodes); do
    run gcloud compute tpus tpu-vm ssh "$node" --zone="$ZONE" --project="$PROJECT" --worker=all --command="$1" &
    waiting+=($!)
    [[ -z $DRY_RUN ]] || wait "$!" # printed in order
  done
  for process in "${waiting[@]}"; do
    wait "$process" || failed=1
  done
  return "$failed"
}
