#!/usr/bin/env bash
# Loads images (docker-archives) into all nodes of the cluster.
#
#   hack/kind/load.sh IMAGE.tar...
set -euo pipefail
# shellcheck source=hack/kind/settings.sh
. "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

[ $# -gt 0 ] || die "usage: $0 IMAGE.tar..."
use_machine "$(recorded_machine)"
for tar; do
  names=$(tar -xOf "$tar" manifest.json | jq -r '.[].RepoTags[]' | paste -sd' ')
  timed "$names" kind load image-archive -q --name "$CLUSTER" "$tar"
done
