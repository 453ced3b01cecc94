#!/usr/bin/env bash
# Brings up the kind cluster (one control plane, WORKERS workers) on this machine, whatever sort it is; README.md tells which
# there are. A running cluster made of the same things is kept. Afterwards: . hack/kind/env.sh
#
#   hack/kind/up.sh [IMAGE.tar...]     images to load into the workers while the cluster starts
# shellcheck disable=SC2317 # functions called through "timed"
set -euo pipefail
# shellcheck source=hack/kind/settings.sh
. "$(dirname "${BASH_SOURCE[0]}")/settings.sh"
# shellcheck source=hack/kind/engine.sh
. "$KIND_DIR/engine.sh"
# shellcheck source=hack/kind/node-image.sh
. "$KIND_DIR/node-image.sh"
# shellcheck source=hack/kind/loops.sh
. "$KIND_DIR/loops.sh"
# shellcheck source=hack/kind/snapshots.sh
. "$KIND_DIR/snapshots.sh"

missing_sys_resource() { # CAP_SYS_RESOURCE is number 24
  local bounding
  bounding=$((16#$(sed -n 's/^CapBnd:\s*//p' /proc/self/status)))
  (((bounding >> 24 & 1) == 0))
}

# kind_config SORT: the cluster, adapted to the machine.
kind_config() {
  local sort=$1 node role
  cat <<YAML
kind: Cluster
apiVersion: kind.x-k8s.io/v1alpha4
name: $CLUSTER
YAML
  # The engine has a network namespace of its own: not 127.0.0.1 but its end of the veth pair.
  if [ "$sort" = private ]; then
    printf 'networking: {apiServerAddress: "%s", apiServerPort: %s}\n' "$ENGINE_IP" "$API_PORT"
  fi
  # Nobody's data is in this etcd, and a busy disk's fsync latency would cost leader elections.
  cat <<'YAML'
kubeadmConfigPatches:
- |
  kind: ClusterConfiguration
  etcd: {local: {extraArgs: [{name: unsafe-no-fsync, value: "true"}]}}
YAML
  if [ "$(docker info --format '{{.CgroupVersion}}')" = 1 ]; then
    cat <<'YAML'
- |
  kind: KubeletConfiguration
  failCgroupV1: false
YAML
  fi
  if missing_sys_resource; then
    cat <<'YAML'
containerdConfigPatches:
- |
  [plugins."io.containerd.grpc.v1.cri"]
    restrict_oom_score_adj = true
YAML
  fi
  echo "nodes:"
  for node in $(node_names); do
    role=worker
    [ "$node" != "$CLUSTER-control-plane" ] || role=control-plane
    # /dev: a node's own is a tmpfs with the devices of the moment it started. The machine's is a devtmpfs, where a loop
    # device appears as soon as somebody asks /dev/loop-control for one.
    cat <<YAML
- role: $role
  extraMounts:
  - {hostPath: /dev, containerPath: /dev}
  - {hostPath: $SHARED_DIR, containerPath: /var/lib/vmdk-csi/shared}
  - {hostPath: $STATE_DIR/$node, containerPath: /var/lib/vmdk-csi/local}
YAML
  done
}

nodes_ready() { # all of them, and as many as there should be
  [ "$(kubectl get nodes --request-timeout 5s -o jsonpath='{range .items[*]}{.status.conditions[?(@.type=="Ready")].status}{"\n"}{end}' 2>/dev/null |
    grep -c True)" = $((WORKERS + 1)) ]
}

# remove_old removes what a half-failed run left; kind finds its containers by label.
remove_old() {
  if [ -n "$(docker ps -aq --filter "label=io.x-k8s.kind.cluster=$CLUSTER")" ]; then
    timed "removing the old cluster" kind delete cluster -q --name "$CLUSTER"
    release_loops
  fi
  rm -f "$STATE_DIR/$CLUSTER.key"
}

# cluster_create KEY CONFIG IMAGE
cluster_create() {
  local key=$1 config=$2 image=$3 node
  for node in $(node_names); do mkdir -p "$STATE_DIR/$node"; done
  if ! kind create cluster --config "$config" --image "$image" --retain >&2; then
    kind export logs -q --name "$CLUSTER" "$STATE_DIR/logs" || true
    die "the cluster did not come up; its logs: $STATE_DIR/logs; the next up.sh begins anew"
  fi
  wait_for 180 nodes_ready || { kubectl get nodes >&2; die "not every node became Ready"; }
  echo "$key" >"$STATE_DIR/$CLUSTER.key"
}

main() {
  local sort image config key loading start=$SECONDS
  need_root
  mkdir -p "$STATE_DIR" "$SHARED_DIR"
  exec 7>"$STATE_DIR/lock"
  flock -n 7 || { info "waiting for another up.sh or down.sh"; flock 7; }

  sort=$(machine_sort)
  step "this machine: $(describe_machine "$sort")"
  echo "$sort" >"$MACHINE_FILE"
  use_machine "$sort"
  # kind and kubectl first: everything else is done with them. (Descriptor 7 stays with us: a daemon would keep the lock.)
  "$HACK_DIR/tools/build.sh" kind k8s 7>&-
  if [ "$sort" = private ]; then timed "engine" engine_start 7>&-; fi
  if [ "$sort" = stock ]; then
    image=$STOCK_IMAGE
  else
    timed "node image" node_image_load 7>&-
    image=$(node_image_name)
  fi

  config=$STATE_DIR/$CLUSTER.yaml
  kind_config "$sort" >"$config"
  key=$(hash_of "=$image" "=$(cat "$config")")
  if [ "$(cat "$STATE_DIR/$CLUSTER.key" 2>/dev/null)" = "$key" ] && nodes_ready; then
    info "cluster $CLUSTER is already running"
  else
    remove_old
    loading=
    if [ $# -gt 0 ]; then
      "$KIND_DIR/load.sh" "$@" 7>&- &
      loading=$!
    fi
    timed "cluster" cluster_create "$key" "$config" "$image" 7>&-
    if [ -n "$loading" ]; then wait "$loading" || die "the images could not be loaded"; fi
    set --
  fi
  if [ $# -gt 0 ]; then "$KIND_DIR/load.sh" "$@"; fi
  timed "snapshot definitions and controller" snapshots_install
  kubectl get nodes >&2
  step "up in $((SECONDS - start)) s; next: . hack/kind/env.sh"
  echo "KUBECONFIG=$KUBECONFIG_FILE"
}

{ main "$@"; exit; } # in one piece: the file may be edited while it runs
