#!/usr/bin/env bash
# Removes the kind cluster, and the private engine if it was the last one in it.
#
#   hack/kind/down.sh [--wipe]         --wipe: also the files of its nodes and of the shared directory, and with the last cluster those of the engine
set -euo pipefail
# shellcheck source=hack/kind/settings.sh
. "$(dirname "${BASH_SOURCE[0]}")/settings.sh"
# shellcheck source=hack/kind/engine.sh
. "$KIND_DIR/engine.sh"
# shellcheck source=hack/kind/loops.sh
. "$KIND_DIR/loops.sh"

other_clusters() { timeout 30 kind get clusters -q 2>/dev/null | grep -vxF "$CLUSTER"; }

# end_node_plugins: they go before the rest of their nodes. If the last process that holds a disk's file server were also the last
# with the disk's file system in its mount namespace, the kernel would unmount it before it closes the server, and wait for ever.
end_node_plugins() {
  local node
  for node in $(node_names); do
    timeout 30 docker exec "$node" sh -c 'systemctl stop kubelet; crictl ps -q --name vmdk-csi-node | xargs -r crictl stop -t 0' \
      >/dev/null 2>&1 || true # a node that does not answer has no driver that runs
  done
}

main() {
  local sort wipe='' others=''
  case ${1:-} in
    --wipe) wipe=1 ;;
    '') ;;
    *) die "usage: $0 [--wipe]" ;;
  esac
  need_root
  if [ ! -d "$STATE_DIR" ]; then
    info "nothing to do: there is no $STATE_DIR"
    return
  fi
  exec 7>"$STATE_DIR/lock"
  flock 7
  sort=$(cat "$MACHINE_FILE" 2>/dev/null || machine_sort)
  use_machine "$sort"
  if docker_answers; then
    end_node_plugins
    # A node that hangs (a dead file server below a mount) must not keep us: the engine's end takes it along.
    timed "cluster" timeout 90 kind delete cluster -q --name "$CLUSTER" || warn "kind could not remove $CLUSTER"
    others=$(other_clusters) || true
  fi
  if docker_answers && [ -n "$(docker ps -aq --filter "label=io.x-k8s.kind.cluster=$CLUSTER")" ]; then
    [ "$sort" = private ] || die "nodes of $CLUSTER are still there: docker ps -a --filter label=io.x-k8s.kind.cluster=$CLUSTER"
  fi
  if [ "$sort" = private ] && [ -z "$others" ]; then timed "engine" engine_stop; fi
  release_loops
  rm -f "$STATE_DIR/$CLUSTER".{key,yaml,kubeconfig}
  if [ -n "$wipe" ]; then wipe_state "$others"; fi
  step "down"
}

# wipe_state OTHERS: one file system only: what is still mounted below belongs to somebody else. Nor does it take the engine
# from other clusters.
wipe_state() {
  local dir
  rm -rf "$STATE_DIR/logs"
  if [ -z "$1" ]; then
    rm -rf --one-file-system "$ENGINE_DIR" "$MACHINE_FILE"
    # The images stay with the caches, unless nodes that could not be removed are there too.
    if [ -n "$(ls -A "$ENGINE_STORE/docker/containers" 2>/dev/null)" ]; then rm -rf --one-file-system "$ENGINE_STORE"; fi
  fi
  # By their names, not by a pattern: another cluster's may begin with ours.
  for dir in "$SHARED_DIR" $(node_names | sed "s#^#$STATE_DIR/#"); do
    if [ -d "$dir" ]; then rm -rf --one-file-system "$dir"; fi
  done
  # The lock is the last thing; who waits for it finds a new one or makes it.
  if [ "$(ls -A "$STATE_DIR")" = lock ]; then rm -rf "$STATE_DIR"; fi
}

{ main "$@"; exit; } # in one piece: the file may be edited while it runs
