// Package e2e installs the chart on a kind cluster with two workers and uses it as people do: claims, pods, deletions,
// restarts, mistakes. It looks at the files from outside, with qemu-img, after a disk was detached.
//
// Built with the tag e2e only: it needs root, some gigabytes and a few minutes. VMDK_CSI_E2E_KEEP=1 leaves the cluster
// up; the next run uses it again.
package e2e
