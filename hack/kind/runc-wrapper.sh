#!/usr/bin/env bash
# The OCI runtime of the private engine: takes out of a container's specification what this machine can not give, then runs runc.
#
# dockerd's --privileged asks for every capability; where root lacks one (CAP_SYS_RESOURCE in many sandboxes) runc fails with
# "unable to apply caps". So capabilities outside our own bounding set go, and with them a lowered OOM score. On cgroup v1,
# systemd in a node also gets an argument from its environment: without it, it mounts the cgroup2 tree, whose root all
# nodes would share, and the kubelets break each other's cgroups.
set -euo pipefail

bundle=. process='' command='' previous=''
for a; do
  case $previous in
    --bundle | -b) bundle=$a ;;
    --process | -p) process=$a ;;
  esac
  case $a in
    --bundle=*) bundle=${a#*=} ;;
    --process=*) process=${a#*=} ;;
    create | run | exec | restore) [ -n "$command" ] || command=$a ;;
  esac
  previous=$a
done

CAPABILITIES=(
  CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE NET_BROADCAST
  NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE
  SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM
  BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE
) # in the order of their numbers, linux/capability.h

missing_capabilities() {
  local bounding i missing=()
  bounding=$((16#$(sed -n 's/^CapBnd:\s*//p' /proc/self/status)))
  for i in "${!CAPABILITIES[@]}"; do
    (((bounding >> i) & 1)) || missing+=("\"CAP_${CAPABILITIES[i]}\"")
  done
  (IFS=,; echo "[${missing[*]-}]")
}

# shellcheck disable=SC2016 # jq's variables
STRIP='def strip:
  if .capabilities then .capabilities |= map_values(if . then . - $missing else . end) else . end
  | if $missing != [] and (.oomScoreAdj // 0) < 0 then del(.oomScoreAdj) else . end;'

# edit FILE FILTER: in place, because containerd holds the file by name and expects its mode and owner.
edit() {
  local edited
  edited=$(jq --argjson missing "$(missing_capabilities)" "$STRIP $2" "$1")
  printf '%s\n' "$edited" >"$1"
}

case $command in
  create | run)
    filter='.process |= strip'
    if [ ! -e /sys/fs/cgroup/cgroup.controllers ]; then
      filter+=' | if (.process.args // []) | index("/sbin/init")
        then .process.env += ["SYSTEMD_PROC_CMDLINE=systemd.legacy_systemd_cgroup_controller=1"] else . end'
    fi
    edit "$bundle/config.json" "$filter"
    ;;
  exec) if [ -n "$process" ]; then edit "$process" strip; fi ;;
esac
exec runc "$@"
