package vmdk

import (
	"bytes"
	"errors"
	"io/fs"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// Begin records, durably and before the first write of this open, that the content changes: a new content ID, and no
// change tracking file that would claim to know what changed. Later calls do nothing. Not concurrent.
func (l *Link) Begin() error {
	if l.begun {
		return nil
	}
	next := l.Descriptor()
	c := NewCID(next.CID())
	if err := next.setContent(c, newLongContentID(c)); err != nil {
		return err
	}
	next.dropChangeTracking()
	if err := l.store(next, false); err != nil {
		return err
	}
	l.begun = true
	return nil
}

// store makes next the descriptor on disk and of l. A structural change of a stand-alone descriptor, one that must be there
// as a whole or not at all, goes by rename.
func (l *Link) store(next *Descriptor, structural bool) error {
	if l.unsure != nil {
		return l.unsure
	}
	var err error
	old, text := l.desc.Load().Text(), next.Text()
	switch {
	case l.embedded:
		err = storeEmbedded(l.dir, l.Name, text)
	case !structural && patchable(old, text):
		err = patchDescriptor(l.dir, l.Name, old, text)
	default:
		err = replaceFile(l.dir, l.Name, text)
	}
	if err != nil {
		err = fault.Wrap(err, "descriptor %s", l.Name)
		if structural && !refused(err) {
			l.unsure = fault.New(fault.Poisoned, "detach the disk and attach it again", "an earlier change of %s failed half-way: %w", l.Name, err)
		}
		return err
	}
	l.desc.Store(next)
	return nil
}

// refused tells that a failed change has surely not happened: it was turned down, not lost on the way.
func refused(err error) bool {
	switch fault.KindOf(err) {
	case fault.NoSpace, fault.ReadOnly, fault.Denied, fault.Exhausted, fault.Invalid, fault.OutOfRange:
		return true
	}
	return false
}

// patchable tells that only content IDs changed, in place: at most the sector of the CID and that of the long one.
func patchable(old, text []byte) bool {
	return len(old) == len(text) && len(diffSectors(old, text)) <= 2
}

func diffSectors(old, text []byte) []int {
	var out []int
	for at := 0; at < len(text); at += SectorSize {
		end := min(at+SectorSize, len(text))
		if !bytes.Equal(old[at:end], text[at:end]) {
			out = append(out, at)
		}
	}
	return out
}

// patchDescriptor writes the changed sectors of a stand-alone descriptor, the last one (the long ID) first and the CID,
// which is what readers compare, last; each lies in one aligned 512-byte write, whole or absent after a crash. Cut in
// between, CID and long ID disagree, which every reader ignores and Check reports.
func patchDescriptor(d fsx.Dir, name string, old, text []byte) (err error) {
	f, err := d.Open(name, fsx.ReadWrite)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	at := diffSectors(old, text)
	for i := len(at) - 1; i >= 0; i-- {
		if _, err = f.WriteAt(text[at[i]:min(at[i]+SectorSize, len(text))], int64(at[i])); err != nil {
			return err
		}
	}
	return f.Datasync()
}

// Rewrite makes what the descriptor reads as durable. After a sync that failed a file may read as the medium never will,
// and counts as synced (fsync(2), ERRORS): only writing it again brings it there. All sectors are written, in the order of
// patchDescriptor, in place: it takes no room of a full datastore.
func (l *Link) Rewrite() (err error) {
	f, err := l.dir.Open(l.Name, fsx.ReadWrite)
	if err != nil {
		return err
	}
	defer func() { err = fault.Wrap(errors.Join(err, f.Close()), "descriptor %s", l.Name) }()
	base, text := int64(0), l.desc.Load().Text()
	if l.embedded {
		base = int64(l.extents[0].sp.h.descOff) * SectorSize
	}
	for at := (len(text) - 1) / SectorSize * SectorSize; at >= 0; at -= SectorSize {
		if _, err := f.WriteAt(text[at:min(at+SectorSize, len(text))], base+int64(at)); err != nil {
			return err
		}
	}
	return f.Datasync()
}

// storeEmbedded rewrites an embedded descriptor from its last sector to its first, which holds version, CID and
// createType, with a sync before that one. There is no second copy; a crash in between can mix old and new lines, so
// this is called for changes of values only, and while no guest writes.
func storeEmbedded(d fsx.Dir, name string, text []byte) (err error) {
	f, err := d.Open(name, fsx.ReadWrite)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	sector := make([]byte, SectorSize)
	if err := readFull(f, sector, 0); err != nil {
		return err
	}
	h, err := decodeHeader(sector)
	if err != nil {
		return err
	}
	room := int(h.descSize) * SectorSize
	if len(text) > room {
		return fault.New(fault.Exhausted, "convert the disk to one with a stand-alone descriptor", "%d bytes do not fit into the embedded descriptor of %d", len(text), room)
	}
	next := make([]byte, room)
	copy(next, text)
	old := make([]byte, room)
	base := int64(h.descOff) * SectorSize
	if err := readFull(f, old, base); err != nil {
		return err
	}
	at := diffSectors(old, next)
	for i := len(at) - 1; i >= 0; i-- {
		if i == 0 && len(at) > 1 {
			if err := f.Datasync(); err != nil {
				return err
			}
		}
		if _, err := f.WriteAt(next[at[i]:at[i]+SectorSize], base+int64(at[i])); err != nil {
			return err
		}
	}
	return f.Datasync()
}

// tempName is where the next version of a descriptor is prepared; a left-over is replaced.
func tempName(name string) string { return "." + name + ".new" }

// replaceFile replaces a small file: 1. write the new one beside it, 2. sync it, [a crash leaves garbage under the
// temporary name], 3. rename, [either version is there], 4. sync the directory.
func replaceFile(d fsx.Dir, name string, text []byte) error {
	if err := writeFile(d, tempName(name), text); err != nil {
		return err
	}
	if err := d.Rename(tempName(name), name); err != nil {
		return errors.Join(err, removeIfThere(d, tempName(name)))
	}
	return d.Sync()
}

func writeFile(d fsx.Dir, name string, text []byte) (err error) {
	f, err := d.Open(name, fsx.ReadWrite|fsx.Create)
	if err != nil {
		return err
	}
	defer func() {
		if err = errors.Join(err, f.Close()); err != nil {
			err = errors.Join(err, removeIfThere(d, name))
		}
	}()
	if err := f.Truncate(0); err != nil {
		return err
	}
	if _, err := f.WriteAt(text, 0); err != nil {
		return err
	}
	return f.Datasync()
}

func removeIfThere(d fsx.Dir, name string) error {
	if err := d.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// CloseClean ends a writing open. Everything must have been written and synced. Protocol for each sparse extent:
// 1. cut the file behind the last grain; that may get lost, nothing is there, 2. uncleanShutdown=0, [a crash until here
// leaves it 1: the next open checks] 3. sync. Then the files are closed.
func (l *Link) CloseClean() error {
	return errors.Join(l.MarkClean(), l.closeFiles())
}

func (s *sparse) clean() error {
	if err := s.alloc.trim(); err != nil {
		return err
	}
	s.h.unclean = false
	if s.h.cowd != nil {
		s.h.cowd.free = uint32(min(s.alloc.next, maxFileSectors-1))
	}
	if err := s.writeHeader(); err != nil {
		return err
	}
	s.begun.Store(false)
	return nil
}
