# Sourced by the scripts under hack/. Output for people, the cache, locks, and processes that may be ended safely.
# shellcheck shell=bash disable=SC2034

HACK_DIR=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
REPO_DIR=$(dirname "$HACK_DIR")
# Everything that is expensive to make lives here, outside the tree, under a name that holds a hash of what it is made of.
CACHE_DIR=${VMDK_CSI_CACHE:-/var/cache/vmdk-csi}

# --- output ---------------------------------------------------------------------------------------------------------
step() { printf '==> %s\n' "$*" >&2; }
info() { printf '    %s\n' "$*" >&2; }
warn() { printf 'warning: %s\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

# timed LABEL COMMAND...: runs it and says how long it took. Not for a function that relies on `set -e` in a condition.
timed() {
  local label=$1 start=$SECONDS
  shift
  "$@"
  info "$label: $((SECONDS - start)) s"
}

need_root() { [ "$(id -u)" = 0 ] || die "$(basename "$0") must run as root"; }

# wait_for SECONDS COMMAND...: polls until the command succeeds; fails after the given time.
wait_for() {
  local deadline=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $deadline ] || return 1
    sleep 0.1
  done
}

# --- cache ----------------------------------------------------------------------------------------------------------
# hash_of FILE_OR_DIRECTORY...: one short hash over names and contents; a leading "=TEXT" argument counts as itself.
hash_of() {
  local a
  for a; do
    case $a in
      =*) printf '%s\n' "$a" ;;
      *) (cd "$(dirname "$a")" && find "$(basename "$a")" -type f -print0 | LC_ALL=C sort -z | xargs -0 -r sha256sum) ;;
    esac
  done | sha256sum | cut -c1-16
}

# cache_fill DIRECTORY FUNCTION ARG...: if DIRECTORY is missing, calls FUNCTION TEMP ARG... and renames TEMP into place, so a
# directory that exists is complete. Concurrent fills of one directory wait for each other.
cache_fill() {
  local dir=$1 fill=$2
  shift 2
  if [ -d "$dir" ]; then return 0; fi
  mkdir -p "$(dirname "$dir")"
  (
    # A subshell: the lock goes with its descriptor, on every way out. No bare `|| return`: that would switch `set -e` off inside.
    set -euo pipefail
    exec 9>"$dir.lock"
    flock -n 9 || { info "waiting for another fill of $dir"; flock 9; }
    if [ ! -d "$dir" ]; then
      # What an interrupted run left (we hold the lock, so nobody is at work on it).
      rm -rf --one-file-system "$dir".tmp.*
      tmp=$dir.tmp.$$
      mkdir "$tmp"
      "$fill" "$tmp" "$@" 9>&-
      mv "$tmp" "$dir"
    fi
  )
}

# --- processes ------------------------------------------------------------------------------------------------------
# A pid alone may have been given to somebody else meanwhile; a pid together with its start time (clock ticks since boot,
# field 22 of /proc/PID/stat) can not.
process_start_time() { sed -E 's/^.*\) //' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f20; }

# process_record FILE PID
process_record() {
  local start
  start=$(process_start_time "$2")
  [ -n "$start" ] || return 1
  printf '%s %s\n' "$2" "$start" >"$1"
}

# process_alive FILE: the recorded process still runs (a zombie does not).
process_alive() {
  local pid start
  { read -r pid start <"$1"; } 2>/dev/null || return 1
  [ "$(process_start_time "$pid")" = "$start" ] && ! grep -q '^State:.Z' "/proc/$pid/status" 2>/dev/null
}

process_pid() { cut -d' ' -f1 "$1"; }

# process_kill FILE [SIGNAL]: ends the recorded process, and only that one; waits until it has gone.
process_kill() {
  if process_alive "$1"; then
    kill "-${2:-KILL}" "$(process_pid "$1")" 2>/dev/null || true
    wait_for 20 process_gone "$1" || return 1
  fi
  rm -f "$1"
}
process_gone() { ! process_alive "$1"; }
