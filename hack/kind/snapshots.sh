# Sourced after settings.sh. VolumeSnapshots: the definitions and the controller that belong to a cluster and not to a driver, as
# external-snapshotter's own modules have them.
# shellcheck shell=bash

# snapshot_module MODULE: the directory of the module at the version that the sidecars are built from.
snapshot_module() {
  (cd "$HACK_DIR/tools/sidecars" && GOWORK=off go mod download "$1" && GOWORK=off go list -m -f '{{if .Replace}}{{.Replace.Dir}}{{else}}{{.Dir}}{{end}}' "$1")
}

# snapshots_install: what is there already is left as it is.
snapshots_install() {
  local crds controller
  need_go
  crds=$(snapshot_module github.com/kubernetes-csi/external-snapshotter/client/v8)/config/crd
  controller=$(snapshot_module github.com/kubernetes-csi/external-snapshotter/v8)/deploy/kubernetes/snapshot-controller
  {
    for f in "$crds"/snapshot.storage.k8s.io_*.yaml "$controller/rbac-snapshot-controller.yaml"; do
      cat "$f"
      echo ---
    done
    # One replica, of the image that hack/images/build.sh makes, and ready as soon as it runs: the definitions are there before it.
    sed -E "s#(image: .*/snapshot-controller:).*#\1$(snapshot_controller_tag)#; s/^(  replicas:).*/\1 1/; /^  minReadySeconds:/d" \
      "$controller/setup-snapshot-controller.yaml"
  } | kubectl apply --server-side --force-conflicts -f - >/dev/null
  kubectl wait --for=condition=Established --timeout=60s crd/volumesnapshots.snapshot.storage.k8s.io \
    crd/volumesnapshotcontents.snapshot.storage.k8s.io crd/volumesnapshotclasses.snapshot.storage.k8s.io >/dev/null
}
snapshot_controller_tag() { sed -nE 's/.*\[snapshot-controller\]=([^ ]+).*/\1/p' "$HACK_DIR/images/build.sh"; }
