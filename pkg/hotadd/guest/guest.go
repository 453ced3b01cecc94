package guest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// Kernel is the kernel of this machine. The zero value is the running one.
type Kernel struct {
	Sys string // where sysfs is mounted; "" is /sys
	Dev string // where the devices' nodes are; "" is /dev
	// Ask reads a disk's serial number from the disk itself, whose node is at path; nil asks with SG_IO.
	Ask func(path string) (serial string, err error)
}

// Disk is a SCSI disk as the kernel shows it.
type Disk struct {
	Name   string // sdb
	Path   string // /dev/sdb
	Unit   int    // SCSI target
	Size   int64  // bytes
	Serial string // as the kernel read it when it found the disk; lower case
	WWN    string // the digits of the disk's 128-bit name, "" if it has none
	// ReadOnly: the kernel refuses writes.
	ReadOnly bool
	dir      string // in sysfs, of the SCSI device
}

// Want is a disk that was attached to the machine.
type Want struct {
	Serial string
	Size   int64 // bytes; 0: any
	Unit   int   // SCSI target; -1: any
}

func (d Disk) is(serial string) bool { return serial != "" && (d.Serial == serial || d.WWN == serial) }

func (d Disk) String() string {
	return fmt.Sprintf("%s (unit %d, serial %q)", d.Name, d.Unit, d.Serial)
}

func (k Kernel) sys(part ...string) string {
	if k.Sys == "" {
		k.Sys = "/sys"
	}
	return filepath.Join(append([]string{k.Sys}, part...)...)
}

func (k Kernel) node(name string) string {
	if k.Dev == "" {
		k.Dev = "/dev"
	}
	return filepath.Join(k.Dev, name)
}

// Disks lists the machine's SCSI disks in order of name. One that goes while it is looked at is left out.
func (k Kernel) Disks() ([]Disk, error) {
	dirs, err := filepath.Glob(k.sys("class", "scsi_device", "*", "device", "block", "*"))
	if err != nil {
		return nil, err
	}
	var list []Disk
	for _, dir := range dirs {
		d, err := k.disk(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fault.Wrap(err, "look at disk %s", filepath.Base(dir))
		}
		list = append(list, d)
	}
	slices.SortFunc(list, func(a, b Disk) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}

func (k Kernel) disk(block string) (Disk, error) {
	d := Disk{Name: filepath.Base(block), dir: filepath.Dir(filepath.Dir(block))}
	d.Path = k.node(d.Name)
	place := filepath.Base(filepath.Dir(d.dir)) // host:channel:target:lun
	if part := strings.Split(place, ":"); len(part) == 4 {
		d.Unit, _ = strconv.Atoi(part[2]) // the kernel's own number
	}
	sectors, err := number(filepath.Join(block, "size"))
	if err != nil {
		return d, err
	}
	d.Size = sectors * 512 // whatever the disk's sectors are (block/genhd.c, part_size_show)
	ro, err := number(filepath.Join(block, "ro"))
	if err != nil {
		return d, err
	}
	d.ReadOnly = ro != 0
	// A disk without the pages has no identity.
	page80, _ := os.ReadFile(filepath.Join(d.dir, "vpd_pg80"))
	page83, _ := os.ReadFile(filepath.Join(d.dir, "vpd_pg83"))
	d.Serial, d.WWN = serialOf(page80), nameOf(page83)
	return d, nil
}

func number(path string) (int64, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
}

// Find finds the disk, if it is there and answers. Kind: Precondition (two disks with one identity).
func (k Kernel) Find(serial string) (Disk, bool, error) {
	known, err := k.Known(serial)
	if err != nil {
		return Disk{}, false, err
	}
	var alive []Disk
	for _, d := range known {
		// VMware's page 0x80 may be spelled otherwise than its name: who is known by the name answers by being there.
		if s, err := k.ask(d.Path); err == nil && (s == d.Serial || s == serial) {
			alive = append(alive, d)
		}
	}
	switch len(alive) {
	case 0:
		return Disk{}, false, nil
	case 1:
		return alive[0], true, nil
	}
	return Disk{}, false, fault.New(fault.Precondition, "Detach one of them: each disk's ddb.uuid must be its own.",
		"two disks have the serial number %s: %s and %s", serial, alive[0], alive[1])
}

// Known lists the disks that the kernel knows by the serial number, also one that is gone and the kernel was not told.
func (k Kernel) Known(serial string) ([]Disk, error) {
	all, err := k.Disks()
	return slices.DeleteFunc(all, func(d Disk) bool { return !d.is(serial) }), err
}

// How often Wait looks, and makes the kernel look. A controller that tells of its disks needs no rescan.
const (
	lookEvery   = 50 * time.Millisecond
	rescanEvery = 2 * time.Second
	rescanFirst = 500 * time.Millisecond
)

// Wait returns the disk when it is there. Kinds: Timeout, Precondition (its size, its identity), InUse (the slot).
func (k Kernel) Wait(ctx context.Context, want Want) (Disk, error) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for rescan := time.Now().Add(rescanFirst); ; {
		d, found, err := k.Find(want.Serial)
		if err != nil {
			return Disk{}, err
		}
		if found {
			return k.sized(d, want)
		}
		if time.Now().After(rescan) {
			// A machine without SCSI hosts may be given one together with the disk.
			if err := k.Rescan(want.Unit); err != nil && !errors.Is(err, fault.NotFound) {
				return Disk{}, err
			}
			if err := k.mistaken(want); err != nil {
				return Disk{}, err
			}
			rescan = time.Now().Add(rescanEvery)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return Disk{}, k.missing(want)
		}
	}
}

// sized checks the size; the kernel may know an old one.
func (k Kernel) sized(d Disk, want Want) (Disk, error) {
	if want.Size == 0 || d.Size == want.Size {
		return d, nil
	}
	if err := k.Resize(d); err != nil {
		return Disk{}, err
	}
	again, found, err := k.Find(want.Serial)
	if err == nil && (!found || again.Size != want.Size) {
		err = fault.New(fault.Precondition, "Compare the disk's capacity (vmdkctl info) with what the hypervisor attached.",
			"disk %s has %d bytes and should have %d", d, d.Size, want.Size)
	}
	return again, err
}

// mistaken looks for a disk that is the one we want, and that the kernel knows as the one that was there before it.
func (k Kernel) mistaken(want Want) error {
	all, err := k.Disks()
	for _, d := range all {
		if d.is(want.Serial) || want.Unit >= 0 && d.Unit != want.Unit {
			continue
		}
		if s, err := k.ask(d.Path); err == nil && s == want.Serial {
			return fault.New(fault.InUse, "Unmount what is on it, and make the kernel forget it: echo 1 > /sys/block/"+d.Name+"/device/delete",
				"the disk with serial number %s is in a slot where the kernel still has another one: %s", want.Serial, d)
		}
	}
	return err
}

func (k Kernel) missing(want Want) error {
	all, err := k.Disks()
	var names []string
	for _, d := range all {
		names = append(names, d.String())
	}
	if len(names) == 0 {
		names = []string{"none"}
	}
	return errors.Join(fault.New(fault.Timeout, "Look whether the hypervisor lists the disk (on vSphere the machine needs disk.EnableUUID=TRUE), "+
		"and into this machine's kernel log.", "the disk with serial number %s did not appear in time; SCSI disks here: %s",
		want.Serial, strings.Join(names, ", ")), err)
}

// Rescan makes the kernel look for disks on every SCSI host, at one target, or at all of them (-1). Kind: NotFound (there is no SCSI host).
func (k Kernel) Rescan(unit int) error {
	hosts, err := filepath.Glob(k.sys("class", "scsi_host", "*", "scan"))
	if err != nil {
		return err
	}
	if len(hosts) == 0 {
		return fault.New(fault.NotFound, "Load the driver of the machine's SCSI controllers.", "this machine has no SCSI host")
	}
	what := "- - -"
	if unit >= 0 {
		what = fmt.Sprintf("- %d -", unit)
	}
	for _, h := range hosts {
		// A host of another kind (a disk controller's own, a tape's) may have no such target.
		if err := os.WriteFile(h, []byte(what), 0); err != nil && !isInvalid(err) {
			return fault.Wrap(err, "rescan")
		}
	}
	return nil
}

// Resize makes the kernel ask the disk for its size.
func (k Kernel) Resize(d Disk) error {
	return fault.Wrap(os.WriteFile(filepath.Join(d.dir, "rescan"), []byte("1"), 0), "ask disk %s for its size", d.Name)
}

// Forget makes the kernel write back what it has of a disk ("sdb") and drop it, after the unmount and before the detach, or after it where
// the controller told nothing; one that is not there is forgotten already.
func (k Kernel) Forget(name string) error {
	if name == "" || filepath.Base(name) != name {
		return fault.New(fault.Invalid, "", "%q is not the name of a block device", name)
	}
	f, err := os.OpenFile(k.sys("block", name, "device", "delete"), os.O_WRONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fault.Wrap(err, "forget disk %s", name)
	}
	_, err = f.WriteString("1")
	if isGone(err) {
		err = nil
	}
	if e := f.Close(); err == nil {
		err = e
	}
	return fault.Wrap(err, "forget disk %s", name)
}
