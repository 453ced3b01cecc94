// Package sanity runs the CSI conformance suite (csi-sanity, github.com/kubernetes-csi/csi-test) against the driver with
// real kernel devices, file systems and mounts, for file system and for raw block volumes:
//
//	memory  the port pkg/host in memory, the disks' content in memory: what is tested is the driver and the node
//	local   a real vmdk-hostd with a directory as its datastore, and vmdk-csi-node serving both services
//	kube    the same, with the controller and the node's agent meeting in objects of a real API server
//
// Ginkgo runs one suite per process, so the test binary runs itself once per backend, in a mount namespace of its own. Every spec
// becomes a Go subtest, so that passed, failed and skipped are counted, and the reason of each skip is seen. Nothing
// that the driver declares is skipped: an unexpected skip fails, and so does a suite in which fewer specs about snapshots passed
// than csi-sanity has. After each suite nothing may be left: no loop device, mount, process, descriptor of a memfd or of /dev/fuse,
// no object, and no file of a disk or a snapshot.
//
// It needs root and /dev/fuse.
package sanity
