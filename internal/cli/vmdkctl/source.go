package vmdkctl

import (
	"errors"
	"io"
	"os"
	"path/filepath"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
)

// Refs are the links for package chain, with what the manifest knows about them.
func (f *found) refs() []chain.Ref {
	refs := make([]chain.Ref, len(f.Names))
	for i, n := range f.Names {
		refs[i].Name = n
		if f.Links == nil {
			continue
		}
		l := f.Links[i]
		refs[i].Type, refs[i].ExtentNames = vmdk.Type(l.Type), l.Extents
		if f.Volume.Manifest.Growing == 0 && !f.merging() { // else a descriptor is on its way to another size
			refs[i].Size = l.Size
		}
	}
	return refs
}

// ChainSource reads a disk through its chain; holes are known, not read.
type chainSource struct {
	*chain.Chain
	found *found
}

// OpenChain opens f, which it owns from then on, for reading: against writers it is locked, as a copy would be a mixture.
func openChain(f *found) (source, error) {
	if v := f.Volume; f.live() {
		f.Close()
		return nil, fault.New(fault.InUse, "Detach it there first.", "the disk %s is attached on host %q", v.Record.Name, v.Manifest.Owner.Host)
	}
	c, err := chain.Open(f.Dir, f.refs(), chain.Options{ReadOnly: true, Locks: true, Devices: f.Devices, IgnoreCID: f.IgnoreCID})
	if err != nil {
		f.Close()
		return nil, err
	}
	return &chainSource{c, f}, nil
}

func (s *chainSource) Data(off int64) (start, end int64, err error) {
	for x, err := range s.Map(off, s.Size()-off) {
		if err != nil {
			return 0, 0, err
		}
		if !x.Zero {
			return x.Start, x.Start + x.Length, nil
		}
	}
	return 0, 0, io.EOF
}

func (s *chainSource) Close() error {
	err := s.Chain.Close()
	s.found.Close()
	return err
}

// RawSource reads a raw image.
type rawSource struct {
	fsx.File
	size int64
}

func (s *rawSource) Size() int64 { return s.size }

func (s *rawSource) Data(off int64) (start, end int64, err error) { return s.SeekData(off) }

// DeviceSource reads a block device, which has no holes that could be known.
type deviceSource struct {
	*os.File
	size int64
}

func (s *deviceSource) Size() int64 { return s.size }

func (s *deviceSource) Data(off int64) (start, end int64, err error) { return off, s.size, nil }

// OpenRaw opens a raw image for reading, locked against writers, or a block device.
func openRaw(path string) (source, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Mode().Type() == os.ModeDevice {
		return openDevice(path)
	}
	// A symbolic link is the person's own; fsx follows none.
	if path, err = filepath.EvalSymlinks(path); err != nil {
		return nil, err
	}
	d, err := fsx.OpenRoot(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer d.Close()
	f, err := d.Open(filepath.Base(path), fsx.ReadOnly)
	if err != nil {
		return nil, err
	}
	err = f.Lock(fsx.LockRead)
	if errors.Is(err, fault.Unsupported) {
		err = nil
	}
	var st fsx.Info
	if err == nil {
		st, err = f.Stat()
	}
	if err == nil && st.Size == 0 {
		err = fault.New(fault.Invalid, "Give an image with content.", "it is empty")
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &rawSource{f, st.Size}, nil
}

func openDevice(path string) (source, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &deviceSource{f, size}, nil
}
