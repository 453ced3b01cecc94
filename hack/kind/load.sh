#!/usr/bin/env bash
# Loads images (docker-archives) into the worker nodes of the cluster, into all at a time.
#
#   hack/kind/load.sh IMAGE.tar...
# shellcheck disable=SC2317 # functions called through "timed"
set -euo pipefail
# shellcheck source=hack/kind/settings.sh
. "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

# load NODE TAR...: waits for containerd, which a node that is just starting does not have yet.
load() {
  local node=$1 tar have name log
  log=$(mktemp)
  shift
  wait_for 120 docker exec "$node" ctr version || die "node $node has no containerd"
  # kind restarts containerd while it configures the node: what is not known to be there is loaded, and everything is tried again.
  have=$(docker exec "$node" ctr --namespace k8s.io images ls -q 2>/dev/null) || have=
  for tar; do
    name=$(tar -xOf "$tar" manifest.json | jq -r '.[0].RepoTags[0]')
    if grep -qxF "$name" <<<"$have"; then continue; fi
    import "$node" "$tar" "$log" || again "$node" "$tar" "$log" || again "$node" "$tar" "$log" ||
      die "node $node: $(basename "$tar"): $(cat "$log")"
  done
  rm -f "$log"
}

import() { # NODE TAR LOG
  docker exec -i "$1" ctr --namespace k8s.io images import --all-platforms --digests --snapshotter overlayfs - <"$2" >/dev/null 2>"$3"
}

again() { # NODE TAR LOG
  wait_for 60 docker exec "$1" ctr version && import "$@"
}

load_all() {
  local node pids=()
  for node in $(node_names); do
    if [ "$node" = "$CLUSTER-control-plane" ] && [ "$WORKERS" -gt 0 ]; then continue; fi
    load "$node" "$@" &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do wait "$pid" || die "an image could not be loaded"; done
}

[ $# -gt 0 ] || die "usage: $0 IMAGE.tar..."
use_machine "$(recorded_machine)"
timed "$(for tar; do basename "$tar" .tar; done | paste -sd' ')" load_all "$@"
