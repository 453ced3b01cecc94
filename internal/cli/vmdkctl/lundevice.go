package vmdkctl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/vmdk-csi/vmdk-csi/internal/cli"
	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/datastore"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/host/lun"
	"github.com/vmdk-csi/vmdk-csi/pkg/lease"
	"github.com/vmdk-csi/vmdk-csi/pkg/san"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/dm"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/lunlease"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/lunpath"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/store"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
	"github.com/vmdk-csi/vmdk-csi/pkg/volume"
)

// lunDevice is a disk of a LUN as a device of the kernel.
type lunDevice struct {
	Disk     string   `json:"disk"`
	Device   string   `json:"device"`
	Size     int64    `json:"size"`
	ReadOnly bool     `json:"readOnly"`
	Table    []string `json:"table"` // as dmsetup prints it
}

func (a *app) lunDeviceCommand() *cobra.Command {
	var readOnly bool
	c := &cobra.Command{
		Use:   "device LUN DISK",
		Short: "Make a block device of a disk on a LUN, in the kernel's device mapper",
		Long: `Make a block device of a disk on a LUN until the command is ended by SIGTERM or SIGINT. The kernel's device mapper reads and
writes the LUN itself; no process is in between. DISK is the id or the name of a volume. To be written it must be flat, eagerly
zeroed and without snapshots; with --read-only any disk will do, also one with snapshots.

The command owns the LUN meanwhile, as a metadata server does: it refuses one that a host serves. If it loses the LUN, the
device fails every request. It waits until nobody has the device open before it removes it and gives the LUN back.

Never kill the command with SIGKILL: the device stays then, and goes on writing to a LUN that another host may have. If that
happened, remove the device at once (dmsetup remove --force).

The kernel needs the device mapper (module dm-mod), and the LUN must be a block device.`,
		Example: "  vmdkctl lun device /dev/disk/by-id/wwn-0x600140512345 pvc-4711 --read-only &\n  mount -o ro /dev/dm-0 /mnt",
		Args:    cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			return a.lunDevice(c.Context(), args[0], args[1], readOnly)
		},
	}
	c.Flags().BoolVar(&readOnly, "read-only", false, "the device cannot be written")
	return c
}

// ownTime is how long the command waits for a LUN whose owner may be dead.
const ownTime = 30 * time.Second

// lunDevice: what is made is undone in the opposite order.
//
//  1. the LUN is this process's                        dies: others take it when its lease has run out
//  2. the disk is this process's, and is mapped        dies: the LUN's next owner finds it unreleased and checks it
//  3. the device                                       dies: the device stays; a process that is killed cannot end it, `dmsetup remove` can
//  4. until ctx ends: wait; a LUN that is lost fails the device
func (a *app) lunDevice(ctx context.Context, where, disk string, readOnly bool) (err error) {
	number, err := dm.NumberOf(where)
	if err != nil {
		return err
	}
	control, err := dm.Open()
	if err != nil {
		return err
	}
	defer control.Close()
	file, _, err := lunpath.Open(ctx, where, lunpath.Options{ReadWrite: true})
	if err != nil {
		return err
	}
	defer file.Close()
	held, err := ownLUN(ctx, file, where)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, held.Release()) }()
	d, err := openLUNDisk(ctx, held.File(), disk, readOnly)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	m, err := d.maps.Get(ctx, san.Request{Volume: d.id, Mode: d.mode(), Node: d.host})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.maps.Return(context.WithoutCancel(ctx), m.Grant, m.Generation)) }()
	table, err := dm.Table(m, []dm.Number{number})
	if err != nil {
		return err
	}
	dev, err := control.Create("vmdk-csi-"+d.id, "vmdk-csi-"+d.uuid, readOnly, table)
	if err != nil {
		return err
	}
	return a.whileDevice(ctx, dev, held, d)
}

// whileDevice is step 4, and the end of step 3.
func (a *app) whileDevice(ctx context.Context, dev *dm.Device, held *lunlease.Lease, d *lunDisk) (err error) {
	lines, err := dev.Table()
	if err == nil {
		made := lunDevice{d.id, dev.Path(), d.chain.Size(), d.readOnly, lines}
		err = a.format.Write(a.out, made, func(w io.Writer) error {
			_, err := fmt.Fprintf(w, "%s is disk %s, %s\n", made.Device, made.Disk, cli.FormatSize(made.Size))
			return err
		})
	}
	if err == nil {
		select {
		case <-ctx.Done():
		case <-held.Lost():
			err = errors.Join(held.Check(), dev.Fail())
			d.lost = true
		}
	}
	said := false
	for lost := held.Lost(); ; {
		rerr := dev.Remove()
		if !errors.Is(rerr, fault.InUse) {
			return errors.Join(err, rerr)
		}
		if !said {
			said = true
			_, _ = fmt.Fprintf(a.err, "%s is in use: unmount it; it is removed then\n", dev.Path())
		}
		t := time.NewTimer(200 * time.Millisecond)
		select {
		case <-t.C:
		case <-lost:
			t.Stop()
			if lost = nil; !d.lost {
				d.lost = true
				err = errors.Join(err, held.Check(), dev.Fail())
			}
		}
	}
}

// ownLUN makes the LUN this process's. Kind: InUse, with who has it.
func ownLUN(ctx context.Context, file fsx.File, where string) (*lunlease.Lease, error) {
	o, alive, err := lunlease.Watch(ctx, file, watchOwner)
	if err == nil && alive {
		return nil, fault.New(fault.InUse, "Attach the disk by the host that serves the LUN, or stop that host.", "LUN %s is owned by %s", where, o.Host)
	}
	if err != nil && !errors.Is(err, fault.NotFound) { // nobody has owned it yet
		return nil, err
	}
	name, err := os.Hostname()
	if err != nil {
		return nil, err
	}
	wait, cancel := context.WithTimeout(ctx, ownTime)
	defer cancel()
	return lunlease.Acquire(wait, file, lunlease.Me{Host: fmt.Sprintf("%s/vmdkctl-%d", name, os.Getpid())}, lunlease.Options{})
}

// lunDisk is a disk of a LUN that this process owns; it is the Source of its own map.
type lunDisk struct {
	id, uuid, host string
	readOnly       bool
	lost           bool // the LUN is another's
	epoch          int64

	store *store.Store
	ds    *datastore.Datastore
	vols  *volume.Volumes
	dir   fsx.Dir
	chain *chain.Chain
	maps  *san.Server
}

func openLUNDisk(ctx context.Context, file fsx.File, disk string, readOnly bool) (d *lunDisk, err error) {
	d = &lunDisk{readOnly: readOnly, host: "vmdkctl"}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.Close())
		}
	}()
	if d.store, err = store.Open(file, store.Options{}); err != nil {
		return d, err
	}
	if d.ds, err = datastore.Open(d.store.Root(), datastore.Options{}); err != nil {
		return d, err
	}
	nonce := d.store.Nonce()
	d.vols = volume.New(volume.Config{Store: d.ds, Name: "lun", Engine: volume.VMDK{},
		Host: lease.Identity{Host: "lun-" + d.store.UUID().String(), BootID: store.UUID(nonce).String()}})
	if d.id = disk; !host.ValidDiskID(disk) {
		d.id = host.DiskID(disk)
	}
	nodes, err := lun.Holders(d.store.Root(), d.id)
	if err != nil {
		return d, err
	}
	if len(nodes) > 0 {
		return d, fault.New(fault.InUse, "Detach it there first.", "disk %s is attached on node %q", d.id, nodes[0])
	}
	o, err := d.vols.OpenForAttach(ctx, d.id, readOnly)
	if err != nil {
		return d, err
	}
	d.uuid, d.epoch = o.UUID, o.Epoch
	if err := o.Dir.Close(); err != nil {
		return d, err
	}
	if d.dir, err = inStore(d.store, "volumes/"+d.id); err != nil {
		return d, err
	}
	if d.chain, err = chain.Open(d.dir, o.Refs, chain.Options{ReadOnly: readOnly, Locks: true, Format: vmdk.Format(o.Format)}); err != nil {
		return d, err
	}
	d.maps = san.NewServer(ctx, san.Config{Store: d.store, Source: d, LeaseOnly: true})
	return d, nil
}

func (d *lunDisk) mode() san.Mode {
	if d.readOnly {
		return san.ReadOnly
	}
	return san.ReadWrite
}

// Close releases the disk. Of a LUN that is lost nothing is written any more.
func (d *lunDisk) Close() (err error) {
	if d.chain != nil {
		if d.lost {
			err = d.chain.Abandon()
		} else {
			err = d.chain.Close()
		}
	}
	if d.dir != nil {
		err = errors.Join(err, d.dir.Close())
	}
	if d.epoch != 0 && !d.lost {
		err = errors.Join(err, d.vols.Release(context.Background(), d.id, d.epoch, err != nil))
	}
	if d.ds != nil {
		d.ds.Close()
	}
	if d.store != nil {
		if cerr := d.store.Close(); !d.lost {
			err = errors.Join(err, cerr)
		}
	}
	return err
}

// Open implements san.Source. What is written by the device is written without the chain: its content ID becomes new now.
func (d *lunDisk) Open(_ context.Context, r san.Request) (san.Subject, error) {
	if r.Volume != d.id || r.Node != d.host {
		return nil, fault.New(fault.NotFound, "", "disk %s is not open", r.Volume)
	}
	s := lunSubject{d}
	if d.readOnly || s.Writable() != nil {
		return s, nil
	}
	_, err := d.chain.WriteAt(nil, 0)
	return s, err
}

type lunSubject struct{ d *lunDisk }

func (s lunSubject) Dir() fsx.Dir { return s.d.dir }
func (s lunSubject) Size() int64  { return s.d.chain.Size() }
func (s lunSubject) Close() error { return nil }

func (s lunSubject) Writable() error {
	links := s.d.chain.Links()
	if len(links) > 1 || links[0].Extents()[0].Kind != vmdk.Flat {
		return fault.New(fault.Precondition, "Use --read-only.", "disk %s is not flat, or has snapshots", s.d.id)
	}
	return nil
}

func (s lunSubject) Runs() iter.Seq2[san.Run, error] {
	return func(yield func(san.Run, error) bool) {
		for x, err := range s.d.chain.Map(0, s.d.chain.Size()) {
			r := san.Run{Off: x.Start, Len: x.Length, File: x.File, FileOff: x.Offset}
			if err == nil && x.File == "" && x.Data && !x.Zero {
				err = fault.New(fault.Unsupported, "Export it and convert it.", "disk %s is compressed", s.d.id)
			}
			if !yield(r, err) || err != nil {
				return
			}
		}
	}
}
