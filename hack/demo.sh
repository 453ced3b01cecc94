#!/usr/bin/env bash
# The main job, shown: a claim becomes a VMDK in a pod; its worker is killed and the pod notices nothing; snapshots, a restore, a
# clone and growth while it writes; links that nobody needs any more are merged; the claim moves to a second pod. Leaves the
# cluster up. `hack/demo.sh down` removes all of it.
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
  VMDK_CSI_LOADED=$("$HACK_DIR/images.sh" --version) "$HACK_DIR/install.sh" --values "$HACK_DIR/kind/values.yaml"
}

# clean takes away what an earlier run left. Pods before claims: a claim in use is only marked.
clean() {
  local c
  kubectl delete pod writer reader restored cloned --ignore-not-found --now >/dev/null 2>&1 || true
  kubectl delete -f "$EXAMPLES/rox.yaml" --ignore-not-found >/dev/null 2>&1 || true
  for c in demo restored cloned; do kubectl delete pvc "$c" --ignore-not-found >/dev/null; done
  kubectl delete volumesnapshot demo-1 demo-2 --ignore-not-found >/dev/null
}

claim_to_vmdk() {
  say "2. A claim becomes a VMDK"
  clean
  show kubectl apply -f examples/storageclass.yaml -f examples/claim.yaml -f examples/pod-writer.yaml
  kubectl wait --for=condition=Ready pod/writer --timeout=180s >/dev/null
  wait_for 60 pod_writes writer 20 || die "the pod does not write: kubectl describe pod writer"
  volume=$(kubectl get pvc demo -o jsonpath='{.spec.volumeName}')
  disk=$(kubectl get pv "$volume" -o jsonpath='{.spec.csi.volumeHandle}')
  node=$(kubectl get pod writer -o jsonpath='{.spec.nodeName}')
  files=$STATE_DIR/$node/volumes/$disk
  show kubectl get pvc demo
  show_chain
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
}

snapshots() {
  local at
  say "4. Two snapshots while the pod writes"
  at=$(pod_lines writer)
  show kubectl apply -f examples/volumesnapshotclass.yaml -f examples/snapshot.yaml
  kubectl wait --for=jsonpath='{.status.readyToUse}'=true volumesnapshot/demo-1 --timeout=60s >/dev/null
  first_from=$at first_to=$(pod_lines writer)
  printf '    the pod wrote line %s before it was asked for, and line %s when it was ready\n' "$first_from" "$first_to"
  sed 's/name: demo-1/name: demo-2/' examples/snapshot.yaml | kubectl apply -f - >/dev/null
  kubectl wait --for=jsonpath='{.status.readyToUse}'=true volumesnapshot/demo-2 --timeout=60s >/dev/null
  show kubectl get volumesnapshots
  show kubectl get disksnapshots
  show_chain
}

restore_and_clone() {
  local from to
  say "5. The first snapshot becomes a new claim, and so does the claim that the pod writes to"
  from=$(pod_lines writer)
  show kubectl apply -f examples/restore.yaml -f examples/clone.yaml
  kubectl wait --for=condition=Ready pod/restored pod/cloned --timeout=120s >/dev/null
  to=$(pod_lines writer)
  show kubectl get pvc demo restored cloned
  lines_between restored "$first_from" "$first_to"
  lines_between cloned "$from" "$to"
}

# lines_between POD FROM TO: it found the content of a moment between two lines of the writer.
lines_between() {
  local n
  wait_for 20 pod_counted "$1" || die "pod $1 does not say what it found: kubectl logs $1"
  n=$(kubectl logs "$1" | sed -n 's/^lines: //p')
  if [ "$n" -lt "$2" ] || [ "$n" -gt "$3" ]; then die "pod $1 found $n lines, not $2 to $3"; fi
  printf '    pod %s found %s lines: the content of a moment between line %s and line %s\n' "$1" "$n" "$2" "$3"
}
pod_counted() { kubectl logs "$1" | grep -q '^lines: '; }

grow() {
  say "6. The claim grows while snapshots exist and the pod writes"
  show kubectl patch pvc demo -p '{"spec":{"resources":{"requests":{"storage":"2Gi"}}}}'
  wait_for 60 growth_waits_for_pod || die "the disk does not grow: kubectl describe pvc demo"
  # The kubelet looks at a pod when something about it changes, else once a minute.
  kubectl annotate --overwrite pod writer looked-at="$(date +%s)" >/dev/null
  kubectl wait --for=jsonpath='{.status.capacity.storage}'=2Gi pvc/demo --timeout=90s >/dev/null
  show kubectl exec writer -- df -h /data
  show kubectl get virtualdisk "$disk" -o "jsonpath={.status.conditions[?(@.type=='VMwareReadable')].message}"
  echo
}
growth_waits_for_pod() {
  kubectl get pvc demo -o jsonpath='{.status.conditions[*].type} {.status.capacity.storage}' | grep -qE 'FileSystemResizePending|2Gi'
}

consolidate() {
  say "7. The snapshots go, the second one first; links that nobody needs are merged while the pod writes"
  show kubectl delete volumesnapshot demo-2
  show kubectl delete volumesnapshot demo-1
  kubectl exec restored -- grep -q restored /data/mine || die "the restored claim has lost something"
  show_chain
  printf '    %s\n' "The restored and the cloned claim are whole; they share these links, so the links stay. Now they go too."
  kubectl delete pod restored cloned --now >/dev/null
  show kubectl delete pvc restored cloned
  wait_for 90 one_link || die "the chain is not merged: kubectl describe virtualdisk $disk"
  show_chain
  show kubectl get virtualdisks
}
one_link() { [ "$(kubectl get virtualdisk "$disk" -o jsonpath='{.status.links[*].name}' | wc -w)" = 1 ]; }
show_chain() { show vmdkctl chain --datastore "$STATE_DIR/$node" "$disk"; }

move_claim() {
  local wrote
  say "8. The claim moves to a second pod"
  # Every line is there, once, and none took long.
  kubectl exec writer -- awk '$1 != NR { print "line " NR " is missing"; bad = 1 }
    NR > 1 && $2 - last > gap { gap = $2 - last } { last = $2 }
    END { printf "    %d lines, none missing, none twice; %.2f s at most between two of them\n", NR, gap; exit bad }' /data/log
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
    kubectl apply -f examples/snapshot.yaml && kubectl apply -f examples/rox.yaml  # three pods read one snapshot
    kubectl delete pod reader; bin/vmdkctl check $files/disk.vmdk
    kubectl apply -f examples/raw-block.yaml                                       # a pod with the disk as a block device

Remove everything with: make demo-down
X
}

case ${1:-up} in
  up)
    set_up
    cd "$REPO_DIR"
    claim_to_vmdk
    kill_worker
    snapshots
    restore_and_clone
    grow
    consolidate
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
