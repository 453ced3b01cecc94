package hotadd

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// Emulated is a bus without hardware: it gives slots and remembers them. Every method reads the file anew, so that a
// process that succeeds another on the same bus goes on where that one stopped.
type Emulated struct {
	mu   sync.Mutex
	path string
}

var _ Bus = (*Emulated)(nil)

// OpenEmulated opens the bus whose state is the file at path; a missing file is an empty bus. Kinds: Damaged, those of
// reading a file.
func OpenEmulated(path string) (*Emulated, error) {
	b := &Emulated{path: path}
	_, err := b.load()
	return b, err
}

func (b *Emulated) load() (map[Slot]Disk, error) {
	used := map[Slot]Disk{}
	text, err := os.ReadFile(b.path)
	if errors.Is(err, fs.ErrNotExist) {
		return used, nil
	}
	if err != nil {
		return nil, fault.Wrap(err, "state of the emulated bus")
	}
	var list []Occupied
	if err := json.Unmarshal(text, &list); err != nil {
		return nil, b.damaged(err)
	}
	ids := map[string]bool{}
	for _, o := range list {
		_, taken := used[o.Slot]
		if o.Slot.Check() != nil || o.Disk.ID == "" || taken || ids[o.Disk.ID] {
			return nil, b.damaged(errors.New("slot " + o.Slot.String() + " or its disk is impossible or named twice"))
		}
		used[o.Slot], ids[o.Disk.ID] = o.Disk, true
	}
	return used, nil
}

func (b *Emulated) damaged(err error) error {
	return fault.New(fault.Damaged, "Remove the file when no disk is attached on this host; attached disks get slots again when they are synchronized.",
		"state of the emulated bus in %s: %v", b.path, err)
}

// Attach implements Bus. The lowest free slot is taken.
func (b *Emulated) Attach(_ context.Context, want Disk) (Slot, error) {
	if want.ID == "" {
		return Slot{}, fault.New(fault.Invalid, "", "a disk without an id cannot be attached")
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	used, err := b.load()
	if err != nil {
		return Slot{}, err
	}
	if s, ok := find(used, want.ID); ok {
		return s, nil
	}
	for c := range Controllers {
		for u := range Units {
			s := Slot{Controller: c, Unit: u}
			if _, taken := used[s]; taken || u == ReservedUnit {
				continue
			}
			used[s] = want
			return s, b.save(used)
		}
	}
	return Slot{}, fault.New(fault.Exhausted, "Detach a disk from this host, or use another host.",
		"disk %s: all %d slots of this host's bus are taken", want.ID, Slots)
}

// Detach implements Bus.
func (b *Emulated) Detach(_ context.Context, id string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	used, err := b.load()
	if err != nil {
		return err
	}
	s, ok := find(used, id)
	if !ok {
		return nil
	}
	delete(used, s)
	return b.save(used)
}

// List implements Bus.
func (b *Emulated) List(context.Context) ([]Occupied, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	used, err := b.load()
	return sorted(used), err
}

// Locate implements Bus.
func (b *Emulated) Locate(_ context.Context, id string) (Slot, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	used, err := b.load()
	if err != nil {
		return Slot{}, err
	}
	if s, ok := find(used, id); ok {
		return s, nil
	}
	return Slot{}, fault.New(fault.NotFound, "", "disk %s is not on this host's bus", id)
}

func find(used map[Slot]Disk, id string) (Slot, bool) {
	for s, d := range used {
		if d.ID == id {
			return s, true
		}
	}
	return Slot{}, false
}

func sorted(used map[Slot]Disk) []Occupied {
	list := make([]Occupied, 0, len(used))
	for s, d := range used {
		list = append(list, Occupied{Slot: s, Disk: d})
	}
	slices.SortFunc(list, func(x, y Occupied) int {
		return (x.Slot.Controller-y.Slot.Controller)*Units + x.Slot.Unit - y.Slot.Unit
	})
	return list
}

// save makes used the bus's state.
func (b *Emulated) save(used map[Slot]Disk) error {
	text, err := json.MarshalIndent(sorted(used), "", "  ")
	if err == nil {
		err = replaceFile(b.path, append(text, '\n'))
	}
	return fault.Wrap(err, "state of the emulated bus")
}

// replaceFile puts data at path in one step: temporary file, fsync, rename, fsync of the directory.
func replaceFile(path string, data []byte) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, ".tmp-*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
