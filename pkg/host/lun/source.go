package lun

import (
	"context"
	"iter"
	"sync"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/san"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
)

// source opens what can be mapped: the disks that are open for a node, as that node has them.
type source struct{ s *Server }

var _ san.Source = source{}

// Open implements san.Source. The first map for writing makes the content ID new, as a first write would: nobody here sees
// the node's.
func (o source) Open(_ context.Context, r san.Request) (san.Subject, error) {
	if r.Snapshot != "" {
		return nil, fault.New(fault.Unsupported, "Restore it to a disk.", "a snapshot of disk %s cannot be mapped", r.Volume)
	}
	w := o.s.serving(r.Volume)
	if w == nil {
		return nil, fault.New(fault.NotFound, "Open it first.", "disk %s is not open", r.Volume)
	}
	if !o.s.has(r.Volume, r.Node) {
		return nil, fault.New(fault.InUse, "Open it first.", "disk %s is not open for node %s", r.Volume, r.Node)
	}
	if w.spec.ReadOnly != (r.Mode == san.ReadOnly) {
		return nil, fault.New(fault.Precondition, "Use NBD.", "disk %s is open with readOnly=%v, the map is to be %s", r.Volume, w.spec.ReadOnly, r.Mode)
	}
	w.mu.Lock()
	switch {
	case w.ended:
		w.mu.Unlock()
		return nil, fault.New(fault.NotFound, "Open it first.", "disk %s is not open", r.Volume)
	case w.changing > 0:
		w.mu.Unlock()
		return nil, fault.New(fault.InProgress, "Use NBD until it is done.", "the links or the size of disk %s are being changed", r.Volume)
	}
	w.maps++
	w.mu.Unlock()
	sub := &subject{w: w}
	if r.Mode == san.ReadWrite && sub.Writable() == nil {
		if _, err := w.chain.WriteAt(nil, 0); err != nil {
			_ = sub.Close() // it only counts
			return nil, w.noted(err)
		}
	}
	return sub, nil
}

// subject is a disk of which somebody has a map. It keeps the links and the size from changing.
type subject struct {
	w    *Serving
	once sync.Once
}

func (s *subject) Dir() fsx.Dir { return s.w.dir }
func (s *subject) Size() int64  { return s.w.chain.Size() }

// Writable: what is written by a map is written without this process, so that it must be where a place never changes.
func (s *subject) Writable() error {
	links := s.w.chain.Links()
	if len(links) > 1 {
		return fault.New(fault.Precondition, "Nothing is to be done: it changes back when the snapshots are deleted and consolidated.",
			"disk %s has snapshots, or links of a source: its head is a delta", s.w.spec.ID)
	}
	for _, e := range links[0].Extents() {
		if e.Kind != vmdk.Flat {
			return fault.New(fault.Precondition, "Make the disk monolithicFlat and eagerzeroedthick.", "disk %s is of type %s, which is not flat",
				s.w.spec.ID, links[0].Info().Type)
		}
	}
	return nil
}

func (s *subject) Runs() iter.Seq2[san.Run, error] {
	return func(yield func(san.Run, error) bool) {
		for x, err := range s.w.chain.Map(0, s.w.chain.Size()) {
			r := san.Run{Off: x.Start, Len: x.Length, File: x.File, FileOff: x.Offset}
			if err == nil && x.File == "" && x.Data && !x.Zero {
				err = fault.New(fault.Unsupported, "Use NBD.", "disk %s is compressed", s.w.spec.ID)
			}
			if !yield(r, err) || err != nil {
				return
			}
		}
	}
}

func (s *subject) Close() error {
	s.once.Do(func() {
		s.w.mu.Lock()
		defer s.w.mu.Unlock()
		if s.w.maps--; s.w.maps == 0 {
			close(s.w.free)
			s.w.free = make(chan struct{})
		}
	})
	return nil
}
