#!/usr/bin/env bash
# Makes the driver's three images as the tree is now and prints their files.
#   hack/images.sh               make them
#   hack/images.sh --version     print their tag only
set -euo pipefail
# shellcheck source=hack/lib/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"

# The tag says what the images are made of, so that an upgrade rolls exactly when something changed.
VERSION=dev-$(hash_of "$REPO_DIR"/{cmd,pkg,internal,go.mod,go.sum} "$HACK_DIR/images")
export VERSION
if [ "${1:-}" = --version ]; then
  echo "$VERSION"
  exit
fi
step "building images $VERSION"
"$HACK_DIR/images/build.sh" vmdk-csi-controller vmdk-csi-node vmdk-hostd
