package vsphere

import (
	"errors"
	"net/url"
	"strings"

	vim "github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

const (
	remedyLocked = "Detach the disk from the other virtual machine, or power that machine off; " +
		"vmkfstools -D on the file names the host that holds the lock."
	remedyFile  = "Look for the file with the datastore browser; a datastore must be mounted on the machine's host."
	remedyLogin = "Correct the user and password of vSphere in the configuration."
	remedyPower = "Look at the machine's state in vSphere; disks are added while it runs."
	remedyUUID  = "Power the machine off, set disk.EnableUUID to TRUE in its advanced configuration parameters " +
		"(govc vm.change -vm NAME -e disk.enableUUID=TRUE) and power it on."
)

// kinds is what a fault of vSphere means here; the first that is found in the error's causes counts.
var kinds = []struct {
	is     types.BaseMethodFault
	kind   fault.Kind
	remedy string
}{
	{&types.FileLocked{}, fault.InUse, remedyLocked},
	{&types.FileNotFound{}, fault.NotFound, remedyFile},
	{&types.InvalidDatastorePath{}, fault.Invalid, remedyFile},
	{&types.InvalidDatastore{}, fault.NotFound, remedyFile},
	{&types.CannotAccessFile{}, fault.Unavailable, remedyFile},
	{&types.NoDiskSpace{}, fault.NoSpace, "Free space on the datastore of the machine."},
	{&types.NotAuthenticated{}, fault.Denied, remedyLogin},
	{&types.InvalidLogin{}, fault.Denied, remedyLogin},
	{&types.TooManyDevices{}, fault.Exhausted, "Detach a disk from this machine, or use another one."},
	{&types.ConcurrentAccess{}, fault.InProgress, "Try again; something else reconfigures this machine all the time."},
	{&types.TaskInProgress{}, fault.InProgress, "Try again when the machine's running task (a snapshot, a migration) is over."},
	{&types.InvalidPowerState{}, fault.Precondition, remedyPower},
	{&types.InvalidState{}, fault.Precondition, remedyPower},
	{&types.ManagedObjectNotFound{}, fault.NotFound, "The machine is not registered any more; correct its uuid in the configuration."},
	{&types.DeviceHotPlugNotSupported{}, fault.Unsupported, "Give the machine paravirtual SCSI controllers, which take disks while it runs."},
	{&types.NotSupported{}, fault.Unsupported, ""},
	{&types.HostNotConnected{}, fault.Unavailable, "Try again when the machine's host is connected."},
	{&types.HostCommunication{}, fault.Unavailable, "Try again when the machine's host answers."},
	{&types.InvalidDeviceSpec{}, fault.Precondition, "Compare the machine's SCSI controllers and disks with the message."},
}

// typed gives a fault of vSphere its kind and remedy. nil stays nil.
func typed(err error) error {
	if err == nil {
		return nil
	}
	if f := (*fault.Fault)(nil); errors.As(err, &f) {
		return err
	}
	var denied *types.NoPermission
	if _, ok := vim.As(err, &denied); ok {
		return fault.New(fault.Denied, "Give the user of vSphere this privilege on the machine and its datastore.",
			"%w: privilege %s is missing", err, privileges(denied))
	}
	for _, k := range kinds {
		if vim.Is(err, k.is) {
			return fault.New(k.kind, k.remedy, "%w%s", err, details(err))
		}
	}
	if locked(err) {
		return fault.New(fault.InUse, remedyLocked, "%w%s", err, details(err))
	}
	var network *url.Error
	if errors.As(err, &network) && fault.KindOf(err) != fault.Timeout {
		return fault.New(fault.Unavailable, "Look whether vSphere's address is right and answers from this machine.", "%w", err)
	}
	return err
}

func privileges(f *types.NoPermission) string {
	var list []string
	for _, m := range f.MissingPrivileges {
		list = append(list, m.PrivilegeIds...)
	}
	if len(list) == 0 {
		return f.PrivilegeId
	}
	return strings.Join(list, ", ")
}

// locked: a lock that another host's process holds arrives without a type of its own, as the text of a
// GenericVmConfigFault with the message msg.fileio.lock (VMware KB 10051).
func locked(err error) bool {
	found := false
	vim.In(err, func(f types.BaseMethodFault, text string, _ []types.LocalizableMessage) bool {
		found = strings.Contains(text, "Failed to lock the file")
		for _, m := range f.GetMethodFault().FaultMessage {
			found = found || strings.HasPrefix(m.Key, "msg.fileio.lock") || strings.Contains(m.Message, "Failed to lock the file")
		}
		if g, ok := f.(*types.GenericVmConfigFault); ok {
			found = found || strings.Contains(g.Reason, "Failed to lock the file")
		}
		return found
	})
	return found
}

// details is what the task's fault says beyond its localized text.
func details(err error) string {
	var file types.BaseFileFault
	if _, ok := vim.As(err, &file); ok && file.GetFileFault().File != "" {
		return ": " + file.GetFileFault().File
	}
	return ""
}
