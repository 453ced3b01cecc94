# Sourced after common.sh. Debian packages: installed on the machine, or only unpacked into a directory.
# shellcheck shell=bash

APT_GET=(apt-get -qq -o DPkg::Lock::Timeout=300 -o APT::Get::Assume-Yes=true -o Dpkg::Use-Pty=0)

# apt_locked COMMAND...: apt's list lock has no timeout of its own, so everything of ours that uses apt takes this one first.
apt_locked() {
  command -v apt-get >/dev/null || die "this needs Debian's apt-get; on another system install by hand what the line above names"
  mkdir -p "$CACHE_DIR"
  (
    set -euo pipefail
    exec 8>"$CACHE_DIR/apt.lock"
    flock 8
    "$@" 8>&-
  )
}

# Package lists older than a day make downloads fail with 404 when the archive has moved on.
apt_update() {
  if [ -n "$(find /var/lib/apt/lists -maxdepth 1 -name '*_Packages*' -mmin -1440 -print -quit 2>/dev/null)" ]; then return 0; fi
  step "apt-get update"
  # A failing third-party source must not stop us when Debian's own lists came through.
  "${APT_GET[@]}" update >/dev/null || warn "apt-get update reported errors"
}

package_installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

# need_packages PACKAGE...: installs what is missing. Never for a package with a service; see unpack_packages.
need_packages() {
  local p missing=()
  for p; do package_installed "$p" || missing+=("$p"); done
  if [ ${#missing[@]} = 0 ]; then return 0; fi
  [ "$(id -u)" = 0 ] || die "missing packages: ${missing[*]} (install them, or run as root)"
  step "installing ${missing[*]}"
  apt_locked apt_install "${missing[@]}"
}
apt_install() {
  apt_update
  DEBIAN_FRONTEND=noninteractive "${APT_GET[@]}" install --no-install-recommends "$@" >/dev/null
}

# unpack_packages DIRECTORY PACKAGE...: downloads and unpacks, without running any package script and so without starting a service.
unpack_packages() { apt_locked apt_unpack "$@"; }
apt_unpack() {
  local dir=$1 debs deb
  shift
  apt_update
  debs=$(mktemp -d)
  # Downloading as root into a root-owned directory is what we want: silence the notice about the _apt user.
  (cd "$debs" && "${APT_GET[@]}" -o APT::Sandbox::User=root download "$@")
  for deb in "$debs"/*.deb; do dpkg-deb -x "$deb" "$dir"; done
  rm -rf "$debs"
}
