// Package export is the port between a block.Device and the kernel: whoever has a Device makes it /dev/X through an
// adapter below this package. export/fuse serves the device as the one file of a FUSE file system; export/loop makes
// that file a block device.
//
// The work is split between two processes. The node side is privileged and short-lived: it makes the kernel objects and
// hands descriptors on. The serving side is unprivileged, serves for the life of the disk and may be killed at any
// instruction: another server takes the same descriptor over and the kernel's user notices nothing but a pause.
//
// Floor 2, a port: it imports pkg/block only.
package export
