// Package vsphere is the bus of a virtual machine under vSphere: disks are added to the running machine and removed from
// it by ReconfigVM, through vCenter or an ESXi host.
//
// One attach is one ReconfigVM. It adds the disk (and, where the four SCSI controllers are not all there and the
// existing ones are full, a paravirtual one) and writes a record into the machine's extra configuration, under the
// slot's key:
//
//	vmdkcsi.scsi1:4 = "file=%5Bds1%5D+d%2Fd.vmdk&id=d&uuid=6000C29..."
//
// so the pair is there or is not. The record gives a device its id and the uuid that was asked for; it counts only while
// the slot's device has that file, or its ddb.uuid, in its chain (a migrated disk has another file name). A disk without
// a valid record is somebody else's: it takes its slot, is not listed and is never touched. A detach is one ReconfigVM
// too: it removes the device and the record, and never a file (no fileOperation is ever sent).
//
// The slot is chosen here and not by vSphere, from the hardware list: the lowest one that nothing occupies. The list's
// changeVersion goes along with the change, so that a machine that was changed since is refused (ConcurrentAccess) and read
// again. The same holds for a slot that the new list shows taken, and for a task that runs already; what stays refused is
// an error. An answer that was lost is no harm: the next attach finds the disk in its slot.
//
// A guest recognizes the disk by its ddb.uuid, the tail of /dev/disk/by-id/wwn-0x..., which needs
// disk.EnableUUID=TRUE in the machine's configuration; without it Attach is refused and says how to set it.
//
// A read-only disk is attached as independent_nonpersistent: writes (a journal's replay) go to a redo log beside the
// machine, and vSphere throws it away with the device.
//
// # Privileges
//
// On the machine VirtualMachine.Config.AddExistingDisk, RemoveDisk, AddRemoveDevice (a controller) and AdvancedConfig (the
// record); on the disk's datastore Datastore.Browse and Datastore.FileManagement.
//
// # Goroutines and locks
//
// Open starts one goroutine, which asks for its session now and then, so that it does not expire. Close
// ends it, waits for it and logs out. A session that expired all the same is logged in again, once for all callers who
// saw it expire, and the operation is done again from its reading on. One slot of a channel orders the changes of this process; it is
// held during a task and given up with the caller's context.
//
// # What the simulator cannot show
//
// The tests run against govmomi's in-process simulator. It has no data and no guest, and it enforces little, so that these are
// not shown by it and must be seen on a real vSphere:
//   - exclusivity: two machines may have one file there; FileLocked and "Failed to lock the file" are injected;
//   - changeVersion is ignored there; ConcurrentAccess is injected;
//   - limits: there is no largest number of controllers, devices or disks, and unit 7 is not refused;
//   - permissions and the power state: NoPermission is injected, a machine that is off takes disks like one that runs;
//   - the redo log of a nonpersistent disk, and that it is gone with the device;
//   - that backing.uuid is the file's ddb.uuid (it is made up from the name there), that disk.EnableUUID has an effect,
//     and when the guest sees the disk come and go;
//   - how long a task takes, and a session that expires by itself (tests end it by force).
//
// Floor 5: it imports pkg/fault, pkg/hotadd and govmomi. It is imported by cmd and tests only.
package vsphere
