package qemu

import (
	"errors"
	"strings"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// refusals is what QEMU's errors mean. Almost all have the class GenericError, so that their text must tell; the tests
// provoke these on a real QEMU, because a text is no promise.
var refusals = []struct {
	text   string
	kind   fault.Kind
	remedy string
}{
	{"lun already used by", fault.InUse, "Detach the disk that is in the slot."},
	{`Failed to get "write" lock`, fault.InUse, "Close the disk's image in the process that has it open (lslocks names it)."},
	{`Failed to get shared "write" lock`, fault.InUse, "Close the disk's image in the process that has it open (lslocks names it)."},
	{`Failed to get "consistent read" lock`, fault.InUse, "Close the disk's image in the process that has it open (lslocks names it)."},
	{"Permission conflict on node", fault.InUse, "Remove the other device of the virtual machine that uses the disk."},
	{"is in use", fault.InUse, "Remove the other device of the virtual machine that uses the disk."},
	{"No such file or directory", fault.NotFound, "Look for the disk's files as QEMU's process sees them (its root and mounts)."},
	{"Permission denied", fault.Denied, "Give QEMU's user access to the disk's files."},
	{"Read-only file system", fault.ReadOnly, ""},
	{"No space left on device", fault.NoSpace, "Free space where QEMU keeps redo logs."},
	{"not in VMDK format", fault.Damaged, "Check the disk with vmdkctl check."},
	{"invalid VMDK image descriptor", fault.Damaged, "Check the disk with vmdkctl check."},
	{"' not found", fault.Precondition, "Give the virtual machine the SCSI controllers that the configuration names."},
	{"bad scsi device id", fault.Precondition, "Set the number of the controller's units in the configuration: lsi53c895a has 7."},
	{"does not support hotplugging", fault.Unsupported, "Give the virtual machine virtio-scsi-pci or pvscsi controllers."},
}

// typed gives an error of QEMU's its kind and remedy. nil stays nil.
func typed(err error) error {
	var r *refusal
	if !errors.As(err, &r) {
		return err
	}
	switch r.Class {
	case "CommandNotFound":
		return fault.New(fault.Unsupported, "QEMU 4.0 or later is needed.", "QEMU: %w", err)
	case "DeviceNotFound":
		return fault.New(fault.NotFound, "", "QEMU: %w", err)
	}
	for _, k := range refusals {
		if strings.Contains(r.Desc, k.text) {
			return fault.New(k.kind, k.remedy, "QEMU: %w", err)
		}
	}
	return fault.Wrap(err, "QEMU")
}

func says(err error, text string) bool {
	var r *refusal
	return errors.As(err, &r) && strings.Contains(r.Desc, text)
}

func isClass(err error, class string) bool {
	var r *refusal
	return errors.As(err, &r) && r.Class == class
}
