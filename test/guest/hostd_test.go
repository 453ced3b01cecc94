package guest

import (
	"context"
	"fmt"
	"strings"
	"sync"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/hotadd"
	hotguest "github.com/vmdk-csi/vmdk-csi/pkg/hotadd/guest"
	"github.com/vmdk-csi/vmdk-csi/pkg/hotadd/qemu"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
	"github.com/vmdk-csi/vmdk-csi/test/guest/call"
)

// hostd is the hypervisor's side: it has the disks' files, and adds them to the machine by the bus.
type hostd struct {
	m *machine

	mu    sync.Mutex // guards what follows
	disks map[string]*disk
}

// disk is a disk of a test.
type disk struct {
	id, file   string // file: its head, in the machine's directory
	chain      []chain.Ref
	uuid       string // 32 digits
	size       int64
	controller int
	readOnly   bool // as it was attached last
	lie        func(*hotguest.Want)
	hide       bool // the hypervisor says that it is attached, and it is not
}

func newHostd(m *machine) *hostd { return &hostd{m: m, disks: map[string]*disk{}} }

// make makes a disk's files; child puts a link on the base.
func (h *hostd) make(ctx context.Context, name string, controller int, kind vmdk.Type, size int64, child bool) (*disk, error) {
	d := &disk{id: host.DiskID(name), file: name + ".vmdk", size: size, controller: controller}
	dir, err := fsx.OpenRoot(h.m.dir)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	info, err := vmdk.Create(ctx, dir, d.file, vmdk.CreateParams{Type: kind, Capacity: size})
	if err != nil {
		return nil, err
	}
	d.chain = []chain.Ref{{Name: d.file}}
	if child {
		base := d.file
		d.file = name + "-000001.vmdk"
		d.chain = append(d.chain, chain.Ref{Name: d.file})
		if _, err = vmdk.Create(ctx, dir, d.file, vmdk.CreateParams{Type: vmdk.MonolithicSparse, Capacity: size,
			Parent: &vmdk.Parent{CID: info.CID, Hint: base}}); err != nil {
			return nil, err
		}
	}
	d.uuid = strings.ToLower(strings.NewReplacer(" ", "", "-", "").Replace(info.UUID))
	h.mu.Lock()
	defer h.mu.Unlock()
	h.disks[d.id] = d
	return d, nil
}

// bus is the one of a controller: the disks of a test stay on the controller that it is about.
func (h *hostd) bus(ctx context.Context, controller int) (*qemu.Bus, error) {
	c := qemu.Config{Socket: h.m.path("qmp"), Buses: []string{fmt.Sprintf("scsi%d.0", controller)}, Scratch: h.m.dir, Files: h.file}
	if controllers[controller] == "lsi53c895a" {
		c.Targets = 7
	}
	return qemu.Open(ctx, c)
}

func (h *hostd) file(_ context.Context, want hotadd.Disk) (qemu.File, error) {
	d, err := h.disk(want.ID)
	if err != nil {
		return qemu.File{}, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return qemu.File{Path: h.m.path(d.file), ReadOnly: d.readOnly}, nil
}

func (h *hostd) disk(id string) (*disk, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if d, ok := h.disks[id]; ok {
		return d, nil
	}
	return nil, fault.New(fault.NotFound, "", "there is no disk %s", id)
}

func (d *disk) added() hotadd.Disk { return hotadd.Disk{ID: d.id, UUID: d.uuid} }

func (h *hostd) attachment(d *disk, s hotadd.Slot) host.Attachment {
	h.mu.Lock()
	defer h.mu.Unlock()
	return host.Attachment{ID: d.id, Host: "hypervisor", UUID: d.uuid, Size: d.size, ReadOnly: d.readOnly, Transport: "hotadd",
		Slot: host.Slot{Controller: d.controller, Unit: s.Unit}}
}

// Attach serves the agent.
func (h *hostd) Attach(req host.AttachRequest, a *call.Answer) error {
	err := func() error {
		d, err := h.disk(req.ID)
		if err != nil {
			return err
		}
		h.mu.Lock()
		d.readOnly = req.ReadOnly
		h.mu.Unlock()
		var s hotadd.Slot
		if !d.hide {
			bus, err := h.bus(context.Background(), d.controller)
			if err != nil {
				return err
			}
			if s, err = bus.Attach(context.Background(), d.added()); err != nil {
				return err
			}
		}
		a.Attachments = []host.Attachment{h.attachment(d, s)}
		return nil
	}()
	a.Fault = faultOf(err)
	return nil
}

func faultOf(err error) *fault.Fault {
	if err == nil {
		return nil
	}
	return fault.From(err)
}

// Detach serves the agent.
func (h *hostd) Detach(id call.Text, a *call.Answer) error {
	err := func() error {
		d, err := h.disk(id.Text)
		if err != nil {
			return err
		}
		bus, err := h.bus(context.Background(), d.controller)
		if err != nil {
			return err
		}
		return bus.Detach(context.Background(), d.id)
	}()
	a.Fault = faultOf(err)
	return nil
}

// Attachments serves the agent.
func (h *hostd) Attachments(_ call.Text, a *call.Answer) error {
	for c := range controllers {
		bus, err := h.bus(context.Background(), c)
		var list []hotadd.Occupied
		if err == nil {
			list, err = bus.List(context.Background())
		}
		if err != nil {
			a.Fault = faultOf(err)
			return nil
		}
		for _, o := range list {
			d, err := h.disk(o.Disk.ID)
			if err != nil {
				a.Fault = faultOf(err)
				return nil
			}
			a.Attachments = append(a.Attachments, h.attachment(d, o.Slot))
		}
	}
	return nil
}

// Identify serves the agent.
func (h *hostd) Identify(id call.Text, a *call.Answer) error {
	err := func() error {
		d, err := h.disk(id.Text)
		if err != nil {
			return err
		}
		bus, err := h.bus(context.Background(), d.controller)
		if err != nil {
			return err
		}
		a.Want = hotguest.Want{Serial: d.added().Serial(), Size: d.size, Unit: -1}
		if s, err := bus.Locate(context.Background(), d.id); err == nil {
			a.Want.Unit = s.Unit
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		if d.lie != nil {
			d.lie(&a.Want)
		}
		return nil
	}()
	a.Fault = faultOf(err)
	return nil
}
