// Package guest proves hot-add in a real virtual machine: QEMU (emulating the processor, so that no KVM is needed) boots
// Debian's kernel with a small root file system, pkg/hotadd/qemu adds VMDKs to it while it runs, and the node plugin's service in the guest
// stages, formats, mounts, writes, unmounts and detaches them, on virtio-scsi, pvscsi and lsi53c895a. What was written is
// checked outside, by this project's checker and reader and by qemu-img. The guest's kernel also has the device mapper, so that
// pkg/san/dm and `vmdkctl lun device` are proved here, on a LUN that is a virtio disk.
//
// The guest's process 1 is test/guest/agent; test/guest/call is what it and the tests say to each other. The kernel and the
// root file system are hack/guest.sh's, in $VMDK_CSI_GUEST; without it the tests run that script.
package guest
