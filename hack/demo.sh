#!/usr/bin/env bash
# The main job, shown: a claim becomes a VMDK in a pod; its worker is killed and the pod notices nothing; the claim moves to a
# second pod. Leaves the cluster up. `hack/demo.sh down` removes all of it.
set -euo pipefail
# shellcheck source=hack/lib/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"
# shellcheck source=hack/lib/apt.sh
. "$HACK_DIR/lib/apt.sh"
# shellcheck source=hack/lib/go.sh
. "$HACK_DIR/lib/go.sh"

STATE_DIR=${VMDK_CSI_STATE:-/var/lib/vmdk-csi-kind}
EXAMPLES=$REPO_DIR/examples
# Somebody without a terminal (a log) gets no escape sequences.
if [ -t 1 ]; then BOLD=$'\e[1m' DIM=$'\e[2m' OFF=$'\e[0m'; else BOLD='' DIM='' OFF=''; fi

say() { printf '\n%s%s%s\n' "$BOLD" "$*" "$OFF"; }
# show COMMAND...: prints it as a person would type it, then its output, indented.
show() {
  printf '%s$ %s%s\n' "$DIM" "$*" "$OFF"
  "$@" 2>&1 | sed 's/^/    /'
}

# pod_lines POD: how many lines it has written and made durable so far (it prints each number after its fsync).
pod_lines() { kubectl logs "$1" --tail=1 2>/dev/null | grep -E '^[0-9]+$' || echo 0; }
pod_writes() { # POD COUNT: it has written that many lines
  [ "$(pod_lines "$1")" -ge "$2" ]
}

# worker_pid NODE DISK: the worker's pid as the node sees it, found by its own arguments in /proc (and not by ours).
worker_pid() {
  docker exec "$1" sh -c 'w=di; for p in /proc/[0-9]*; do
    c=$(cat $p/cmdline 2>/dev/null | tr "\0" " ") || continue
    case $c in *" ${w}sk "*" $1 "*) echo ${p#/proc/};; esac
  done' sh "$2" | head -1
}

set_up() {
  say "1. Set-up"
  need_root
  need_packages make git gcc libc6-dev qemu-utils e2fsprogs xfsprogs util-linux iproute2 jq
  need_go
  "$HACK_DIR/tools/build.sh" kind k8s runtime etcd helm sidecars
  "$HACK_DIR/build.sh"
  mapfile -t images < <("$HACK_DIR/images.sh")
  "$HACK_DIR/kind/up.sh" "${images[@]}"
  eval "$("$HACK_DIR/kind/env.sh" --print)"
  export PATH=$REPO_DIR/bin:$PATH
  "$HACK_DIR/install.sh" --values "$HACK_DIR/kind/values.yaml"
}

claim_to_vmdk() {
  say "2. A claim becomes a VMDK"
  kubectl delete pod writer reader --ignore-not-found --now >/dev/null 2>&1 || true
  kubectl delete -f "$EXAMPLES/claim.yaml" --ignore-not-found --wait >/dev/null 2>&1 || true
  show kubectl apply -f examples/storageclass.yaml -f examples/claim.yaml -f examples/pod-writer.yaml
  kubectl wait --for=condition=Ready pod/writer --timeout=180s >/dev/null
  wait_for 60 pod_writes writer 20 || die "the pod does not write: kubectl describe pod writer"
  volume=$(kubectl get pvc demo -o jsonpath='{.spec.volumeName}')
  disk=$(kubectl get pv "$volume" -o jsonpath='{.spec.csi.volumeHandle}')
  node=$(kubectl get pod writer -o jsonpath='{.spec.nodeName}')
  files=$STATE_DIR/$node/volumes/$disk
  show kubectl get pvc demo
  show kubectl get virtualdisks
  show vmdkctl chain "$files/disk.vmdk"
  show qemu-img info -U "$files/disk.vmdk"
}

kill_worker() {
  local pid before after
  say "3. The process that serves the disk dies under the pod"
  before=$(pod_lines writer)
  pid=$(worker_pid "$node" "$disk")
  [ -n "$pid" ] || die "no worker serves $disk on $node"
  show docker exec "$node" kill -9 "$pid"
  wait_for 60 pod_writes writer $((before + 20)) || die "the pod stopped writing: kubectl logs writer"
  after=$(worker_pid "$node" "$disk")
  printf '    worker %s is gone, %s took over; the pod wrote and fsynced lines %s to %s meanwhile\n' "$pid" "$after" "$before" "$(pod_lines writer)"
  # Every line is there, once, and none took long.
  kubectl exec writer -- awk '$1 != NR { print "line " NR " is missing"; bad = 1 }
    NR > 1 && $2 - last > gap { gap = $2 - last } { last = $2 }
    END { printf "    %d lines, none missing, none twice; %.2f s at most between two of them\n", NR, gap; exit bad }' /data/log
  show kubectl get virtualdisks
}

move_claim() {
  local wrote
  say "4. The claim moves to a second pod"
  wrote=$(pod_lines writer)
  show kubectl delete pod writer --now
  show kubectl apply -f examples/pod-reader.yaml
  kubectl wait --for=jsonpath='{.status.phase}'=Succeeded pod/reader --timeout=120s >/dev/null
  show kubectl logs reader
  [ "$(kubectl logs reader | sed -n 's/^lines: //p')" -ge "$wrote" ] || die "the reader found fewer lines than the writer had made durable ($wrote)"
}

what_next() {
  say "The cluster is up. Three things to try, after: . hack/kind/env.sh"
  cat <<X
    kubectl patch pvc demo -p '{"spec":{"resources":{"requests":{"storage":"2Gi"}}}}' && kubectl get virtualdisks -w
    kubectl delete pod reader; bin/vmdkctl check $files/disk.vmdk
    kubectl apply -f examples/raw-block.yaml                    # a pod with the disk as a block device

Remove everything with: make demo-down
X
}

case ${1:-up} in
  up)
    set_up
    cd "$REPO_DIR"
    claim_to_vmdk
    kill_worker
    move_claim
    what_next
    say "demo: done in $SECONDS s"
    ;;
  down)
    need_root
    exec "$HACK_DIR/kind/down.sh" --wipe
    ;;
  *) die "usage: $0 [up|down]" ;;
esac
