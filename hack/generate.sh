#!/usr/bin/env bash
# Makes everything in the tree that is generated from the API types and the chart:
#   pkg/api/v1alpha1/zz_generated.deepcopy.go, charts/vmdk-csi/crds/*.yaml, deploy/vmdk-csi.yaml
#
#   hack/generate.sh          write them
#   hack/generate.sh --check  fail, with the difference, when one is not current
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$ROOT"
CONTROLLER_GEN=sigs.k8s.io/controller-tools/cmd/controller-gen@v0.23.0

out=$ROOT
if [ "${1:-}" = --check ]; then
  out=$(mktemp -d)
  trap 'rm -rf "$out"' EXIT
  mkdir -p "$out/pkg/api/v1alpha1" "$out/charts/vmdk-csi/crds" "$out/deploy"
elif [ $# != 0 ]; then
  echo "usage: $0 [--check]" >&2
  exit 2
fi

GOFLAGS=-mod=mod GOWORK=off go run "$CONTROLLER_GEN" \
  object crd paths=./pkg/api/... \
  output:object:dir="$out/pkg/api/v1alpha1" output:crd:dir="$out/charts/vmdk-csi/crds"

# The static manifest is the chart with its default values, definitions first.
helm=$(hack/tools/build.sh --path helm)/helm
if [ ! -x "$helm" ]; then hack/tools/build.sh helm; fi
{
  echo "# Made by hack/generate.sh from charts/vmdk-csi with its default values. Do not edit."
  cat deploy/namespace.yaml
  "$helm" template vmdk-csi charts/vmdk-csi --namespace vmdk-csi --include-crds --set tests.enabled=false |
    sed "/helm.sh\/chart:/d; s/managed-by: Helm/managed-by: kubectl/"
} >"$out/deploy/vmdk-csi.yaml"

if [ "$out" != "$ROOT" ]; then
  status=0
  for f in pkg/api/v1alpha1/zz_generated.deepcopy.go charts/vmdk-csi/crds deploy/vmdk-csi.yaml; do
    diff -ru "$f" "$out/$f" || status=1
  done
  [ $status = 0 ] || echo "generated files are not current: run hack/generate.sh" >&2
  exit $status
fi
