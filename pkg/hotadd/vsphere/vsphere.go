package vsphere

import (
	"context"
	"log/slog"
	"net/url"
	"time"

	vim "github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/property"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/hotadd"
)

// File is where a disk lies, and how it is attached.
type File struct {
	Path     string // "[datastore] directory/name.vmdk", the descriptor
	ReadOnly bool   // what the guest writes is thrown away when the disk is detached
}

func (f File) mode() string {
	if f.ReadOnly {
		return string(types.VirtualDiskModeIndependent_nonpersistent)
	}
	return string(types.VirtualDiskModeIndependent_persistent) // the machine's snapshots leave the disk alone
}

// Config says which machine's bus this is.
type Config struct {
	URL    *url.URL // https://vcenter/sdk with user and password
	CAFile string   // PEM file of the authority of the server's certificate; "" is the system's
	VM     string   // the machine's BIOS uuid, as vSphere shows it
	// Files finds a disk's file. It gives one disk the same answer while the disk is attached.
	Files func(context.Context, hotadd.Disk) (File, error)
	// KeepAlive is how often the session is used; it expires after 30 minutes by default. 0 is 5 minutes.
	KeepAlive time.Duration
	Log       *slog.Logger // nil is slog.Default()
}

// Bus is the SCSI bus of one virtual machine.
type Bus struct {
	link  *link
	vm    types.ManagedObjectReference
	files func(context.Context, hotadd.Disk) (File, error)
	turn  chan struct{} // holds one token while this process changes the machine
}

var _ hotadd.Bus = (*Bus)(nil)

// Open connects, logs in and finds the machine. The caller closes the bus. Kinds: Invalid, Denied, Unavailable, NotFound.
func Open(ctx context.Context, c Config) (*Bus, error) {
	if c.URL == nil || c.VM == "" || c.Files == nil {
		return nil, fault.New(fault.Invalid, "", "the bus of a virtual machine needs vSphere's address, the machine's uuid and the disks' files")
	}
	if c.KeepAlive <= 0 {
		c.KeepAlive = 5 * time.Minute
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	l, err := connect(ctx, c)
	if err != nil {
		return nil, fault.Wrap(typed(err), "connect to vSphere at %s", c.URL.Host)
	}
	b := &Bus{link: l, files: c.Files, turn: make(chan struct{}, 1)}
	ref, err := object.NewSearchIndex(l.client).FindByUuid(ctx, nil, c.VM, true, nil)
	if err == nil && ref == nil {
		err = fault.New(fault.NotFound, "Compare the uuid with the machine's in vSphere; the user must be allowed to see the machine.",
			"no machine of vSphere has this uuid")
	}
	if err != nil {
		_ = l.close(ctx) // the error below is the one that counts
		return nil, fault.Wrap(typed(err), "find machine %s", c.VM)
	}
	b.vm = ref.Reference()
	return b, nil
}

// Close ends the keep-alive and logs out. Disks stay attached.
func (b *Bus) Close(ctx context.Context) error {
	return fault.Wrap(typed(b.link.close(ctx)), "log out of vSphere")
}

// Attach implements hotadd.Bus. Further kinds: NotFound (the file), InUse (another machine holds it), Denied, Precondition
// (disk.EnableUUID is off, the disk is attached with another file or mode), InProgress, Unavailable, Timeout.
func (b *Bus) Attach(ctx context.Context, want hotadd.Disk) (hotadd.Slot, error) {
	if want.ID == "" {
		return hotadd.Slot{}, fault.New(fault.Invalid, "", "a disk without an id cannot be attached")
	}
	f, err := b.files(ctx, want)
	if err != nil {
		return hotadd.Slot{}, fault.Wrap(err, "file of disk %s", want.ID)
	}
	var got hotadd.Slot
	err = b.change(ctx, func(h *hardware) (*types.VirtualMachineConfigSpec, error) {
		if o, ok := h.find(want.ID); ok {
			got = o.slot
			return nil, o.agrees(f)
		}
		if !h.enableUUID {
			return nil, fault.New(fault.Precondition, remedyUUID, "disk.EnableUUID is not set: the guest could not recognize the disk")
		}
		s, add, ok := h.free()
		if !ok {
			return nil, fault.New(fault.Exhausted, "Detach a disk from this machine, or use another one.",
				"all %d slots of the machine's bus are taken", hotadd.Slots)
		}
		got = s
		spec := h.addSpec(s, add, want, f)
		return &spec, nil
	})
	if err != nil {
		return hotadd.Slot{}, fault.Wrap(err, "attach disk %s (%s)", want.ID, f.Path)
	}
	return got, nil
}

// agrees says whether the disk is attached as f wants it.
func (o occupant) agrees(f File) error {
	if o.file == f.Path && (o.mode == string(types.VirtualDiskModeIndependent_nonpersistent)) == f.ReadOnly {
		return nil
	}
	return fault.New(fault.Precondition, "Detach the disk first.", "it is in slot %s already, as %s of %s", o.slot, o.mode, o.file)
}

// Detach implements hotadd.Bus. The disk's files stay.
func (b *Bus) Detach(ctx context.Context, id string) error {
	err := b.change(ctx, func(h *hardware) (*types.VirtualMachineConfigSpec, error) {
		spec, ok := h.removeSpec(id)
		if !ok {
			return nil, nil
		}
		return &spec, nil
	})
	return fault.Wrap(err, "detach disk %s", id)
}

// List implements hotadd.Bus. Disks that were not attached here are not listed.
func (b *Bus) List(ctx context.Context) ([]hotadd.Occupied, error) {
	h, err := b.look(ctx)
	if err != nil {
		return nil, fault.Wrap(err, "list the machine's disks")
	}
	list := make([]hotadd.Occupied, 0, len(h.ours))
	for _, o := range h.ours {
		list = append(list, hotadd.Occupied{Slot: o.slot, Disk: o.disk})
	}
	return list, nil
}

// Locate implements hotadd.Bus.
func (b *Bus) Locate(ctx context.Context, id string) (hotadd.Slot, error) {
	return b.locate(ctx, "disk "+id, func(o occupant) bool { return o.disk.ID == id })
}

// LocateUUID finds the slot of the disk with this ddb.uuid, however it is written. Kinds: NotFound, Invalid.
func (b *Bus) LocateUUID(ctx context.Context, uuid string) (hotadd.Slot, error) {
	want := canonical(uuid)
	if want == "" {
		return hotadd.Slot{}, fault.New(fault.Invalid, "", "%q is not a disk's uuid", uuid)
	}
	return b.locate(ctx, "disk with uuid "+uuid, func(o occupant) bool {
		return canonical(o.uuid) == want || canonical(o.disk.UUID) == want
	})
}

func (b *Bus) locate(ctx context.Context, what string, is func(occupant) bool) (hotadd.Slot, error) {
	h, err := b.look(ctx)
	if err != nil {
		return hotadd.Slot{}, fault.Wrap(err, "locate %s", what)
	}
	for _, o := range h.ours {
		if is(o) {
			return o.slot, nil
		}
	}
	return hotadd.Slot{}, fault.New(fault.NotFound, "", "%s is not on this machine's bus", what)
}

// look reads the machine's hardware.
func (b *Bus) look(ctx context.Context) (*hardware, error) {
	var h *hardware
	err := b.link.do(ctx, func(ctx context.Context) error {
		var err error
		h, err = b.read(ctx)
		return err
	})
	return h, typed(err)
}

func (b *Bus) read(ctx context.Context) (*hardware, error) {
	var vm mo.VirtualMachine
	err := property.DefaultCollector(b.link.client).RetrieveOne(ctx, b.vm,
		[]string{"config.changeVersion", "config.extraConfig", "config.hardware.device"}, &vm)
	if err != nil {
		return nil, err
	}
	if vm.Config == nil {
		return nil, fault.New(fault.Unavailable, "Look at the machine's state in vSphere.", "the configuration of machine %s cannot be read", b.vm.Value)
	}
	return parseHardware(vm.Config), nil
}

// A change that met another one is tried again this often, after pauses of 50 ms to 1.6 s: about 8 s in all.
const (
	tries    = 10
	minPause = 50 * time.Millisecond
	maxPause = 1600 * time.Millisecond
)

// change reads the machine, lets plan say what to change (nil: nothing), and has it changed; a change that met another
// one starts from the reading again.
func (b *Bus) change(ctx context.Context, plan func(*hardware) (*types.VirtualMachineConfigSpec, error)) error {
	select {
	case b.turn <- struct{}{}:
		defer func() { <-b.turn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	pause := minPause
	for n := 1; ; n++ {
		err := b.link.do(ctx, func(ctx context.Context) error { return b.once(ctx, plan) })
		if err == nil || n == tries || !b.conflict(ctx, err) {
			return typed(err)
		}
		b.link.log.Debug("the machine was changed meanwhile, reading it again", "error", err)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return ctx.Err()
		}
		pause = min(2*pause, maxPause)
	}
}

func (b *Bus) once(ctx context.Context, plan func(*hardware) (*types.VirtualMachineConfigSpec, error)) error {
	h, err := b.read(ctx)
	if err != nil {
		return err
	}
	spec, err := plan(h)
	if err != nil || spec == nil {
		return err
	}
	task, err := object.NewVirtualMachine(b.link.client, b.vm).Reconfigure(ctx, *spec)
	if err == nil {
		err = task.Wait(ctx)
	}
	if vim.Is(err, &types.InvalidDeviceSpec{}) {
		return refused{err, spec}
	}
	return err
}

// refused is a device that vSphere did not take.
type refused struct {
	error
	spec *types.VirtualMachineConfigSpec
}

func (r refused) Unwrap() error { return r.error }

// conflict says whether the change failed because of another one.
func (b *Bus) conflict(ctx context.Context, err error) bool {
	if vim.Is(err, &types.ConcurrentAccess{}) || vim.Is(err, &types.TaskInProgress{}) {
		return true
	}
	r, ok := err.(refused)
	if !ok {
		return false
	}
	// A device is refused for many reasons. The slot was the reason where the machine changed since.
	h, err := b.look(ctx)
	return err == nil && h.version != r.spec.ChangeVersion
}
