package vmdk

import (
	"context"
	"errors"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// maker makes the files of one link and remembers them, to undo.
type maker struct {
	ctx   context.Context
	d     fsx.Dir
	p     *CreateParams
	made  []string
	done  int64 // bytes written, for progress
	total int64
}

func (m *maker) make(name string, desc *Descriptor, lines []ExtentLine) error {
	if err := m.checkFree(); err != nil {
		return err
	}
	if m.p.Format == EagerZeroedThick {
		m.total = m.p.Capacity
	}
	if m.p.Type.Embedded() {
		temp := tempName(name)
		if err := m.sparseFile(temp, lines[0].Sectors, desc); err != nil {
			return err
		}
		return m.commit(temp, name)
	}
	for _, x := range lines {
		if err := m.extent(x); err != nil {
			return err
		}
	}
	if err := m.d.Sync(); err != nil {
		return err
	}
	temp := tempName(name)
	m.made = append(m.made, temp)
	if err := writeFile(m.d, temp, desc.Text()); err != nil {
		return err
	}
	return m.commit(temp, name)
}

// checkFree refuses a thick disk that cannot fit before anything is written.
func (m *maker) checkFree() error {
	if m.p.Format == Thin {
		return nil
	}
	_, free, err := m.d.Space()
	if err != nil {
		return err
	}
	if free < m.p.Capacity {
		return fault.New(fault.NoSpace, "free space on the datastore, or use format thin", "a %s disk of %d bytes does not fit into the %d bytes that are free", m.p.Format, m.p.Capacity, free)
	}
	return nil
}

// commit gives the finished descriptor its name, without replacing a file that appeared meanwhile.
func (m *maker) commit(temp, name string) error {
	err := m.d.LinkFrom(m.d, temp, name)
	switch {
	case err == nil:
		m.made = append(m.made, name)
		if err := m.d.Remove(temp); err != nil {
			return err
		}
	case fault.KindOf(err) == fault.Unsupported || fault.KindOf(err) == fault.Denied: // no hard links here (FAT, some shares)
		if err := m.d.Rename(temp, name); err != nil {
			return err
		}
		m.made = append(m.made, name)
	default:
		return err
	}
	return m.d.Sync()
}

// extent makes one extent file, complete and durable.
func (m *maker) extent(x ExtentLine) error {
	if !flatType(x.Type) {
		return m.sparseFile(x.Name, x.Sectors, nil)
	}
	return m.flatFile(x.Name, x.Sectors*SectorSize)
}

// open makes an empty file: with Resume in the place of what is there, else only if nothing is.
func (m *maker) open(name string, flag fsx.Flag) (fsx.File, error) {
	flag |= fsx.ReadWrite | fsx.Create
	if !m.p.Resume && name[0] != '.' { // temporary names are ours to replace
		flag |= fsx.Exclusive
	}
	f, err := m.d.Open(name, flag)
	if err != nil {
		return nil, fault.Wrap(err, "extent %s", name)
	}
	m.made = append(m.made, name)
	if err := f.Truncate(0); err != nil {
		return nil, errors.Join(fault.Wrap(err, "extent %s", name), f.Close())
	}
	return f, nil
}

func (m *maker) sparseFile(name string, sectors int64, desc *Descriptor) (err error) {
	f, err := m.open(name, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return fault.Wrap(m.sparseContent(f, sectors, desc), "extent %s", name)
}

// sparseContent writes header, descriptor and directories. All tables are there, as VMware wants it; being zeros they
// are a hole of the file.
func (m *maker) sparseContent(f fsx.File, sectors int64, desc *Descriptor) error {
	descSectors := int64(0)
	if desc != nil {
		descSectors = embeddedDescSectors
	}
	if m.p.Type == VMFSSparse {
		return cowdContent(f, cowdLayout(sectors, m.p.GrainSectors))
	}
	h := layout(sectors, m.p.GrainSectors, descSectors)
	if err := f.Truncate(int64(h.overHead) * SectorSize); err != nil {
		return err
	}
	pieces := []struct {
		b  []byte
		at uint64
	}{{h.directory(h.rgdOff), h.rgdOff}, {h.directory(h.gdOff), h.gdOff}, {h.encode(), 0}}
	if desc != nil {
		text := desc.Text()
		if len(text) > (embeddedDescSectors-1)*SectorSize { // VirtualBox adds its keys on first use
			return fault.New(fault.Exhausted, "use type twoGbMaxExtentSparse", "the descriptor of %d bytes does not fit", len(text))
		}
		pieces = append(pieces, struct {
			b  []byte
			at uint64
		}{text, h.descOff})
	}
	for _, p := range pieces {
		if _, err := f.WriteAt(p.b, int64(p.at)*SectorSize); err != nil {
			return err
		}
	}
	return f.Datasync()
}

func (m *maker) flatFile(name string, size int64) (err error) {
	flag := fsx.Flag(0)
	if m.p.Format == EagerZeroedThick {
		flag = fsx.Direct
	}
	f, err := m.open(name, flag)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return fault.Wrap(m.flatSpace(f, 0, size), "extent %s", name)
}

// flatSpace extends a flat file from one size to another in the way of the format, durably.
func (m *maker) flatSpace(f fsx.File, from, to int64) error {
	switch m.p.Format {
	case Thin:
		if err := f.Truncate(to); err != nil {
			return err
		}
	case ZeroedThick:
		err := f.Allocate(from, to-from)
		if fault.KindOf(err) == fault.Unsupported { // the only other way to reserve
			m.total += to - from
			err = m.writeZeros(f, from, to)
		}
		if err != nil {
			return err
		}
	case EagerZeroedThick:
		if err := f.Allocate(from, to-from); err != nil && fault.KindOf(err) != fault.Unsupported {
			return err // ENOSPC at once, not after an hour
		}
		if err := m.writeZeros(f, from, to); err != nil {
			return err
		}
	}
	return f.Datasync()
}

func (m *maker) writeZeros(f fsx.File, from, to int64) error {
	zeros := make([]byte, 4<<20)
	for off := from; off < to; {
		if err := m.ctx.Err(); err != nil {
			return err
		}
		n := min(to-off, int64(len(zeros)))
		if _, err := f.WriteAt(zeros[:n], off); err != nil {
			return err
		}
		off += n
		m.done += n
		if m.p.Progress != nil {
			m.p.Progress(m.done, m.total)
		}
	}
	return nil
}

// undo removes what this maker made, the descriptor first.
func (m *maker) undo() error {
	var errs []error
	for i := len(m.made) - 1; i >= 0; i-- {
		errs = append(errs, removeIfThere(m.d, m.made[i]))
	}
	return errors.Join(errs...)
}
