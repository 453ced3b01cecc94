package volume

import (
	"context"
	"errors"
	"slices"

	"github.com/vmdk-csi/vmdk-csi/pkg/datastore"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/lease"
)

// origin is what a record's source is just now.
type origin struct {
	disk     string // id of the disk that has the links
	size     int64
	links    int  // how many of them are needed
	snapshot bool // a snapshot, not the disk as it is
}

// origin finds the source. Kinds: NotFound, Damaged.
func (v *Volumes) origin(src datastore.Source) (origin, error) {
	if src.Snapshot != "" {
		m, p, err := v.snapshot(src.Snapshot)
		return origin{disk: m.Disk, size: p.Size, links: m.Index(p.Link) + 1, snapshot: true}, err
	}
	m, err := v.manifest(src.Disk)
	if err = living(src.Disk, m, err); err != nil {
		return origin{}, err
	}
	return origin{disk: src.Disk, size: m.Size, links: len(m.Links)}, nil
}

// checkSource refuses, before anything is made, what can never become a disk.
func (v *Volumes) checkSource(spec host.DiskSpec) error {
	if spec.Source == nil {
		return nil
	}
	src := datastore.Source{Snapshot: spec.Source.Snapshot, Disk: spec.Source.Disk}
	if src.Disk == host.DiskID(spec.Name) {
		return fault.New(fault.NotFound, "", "disk %s does not exist", src.Disk)
	}
	o, err := v.origin(src)
	if err != nil {
		return fault.Wrap(err, "the source of disk %s", host.DiskID(spec.Name))
	}
	return fits(spec.Size, spec.CloneMode, o)
}

// fits checks size and depth of a disk that is made from o.
func fits(size int64, mode host.CloneMode, o origin) error {
	if size < o.size {
		return fault.New(fault.OutOfRange, "Ask for at least the size of the source.", "a disk of %d MiB cannot hold its source of %d MiB", size>>20, o.size>>20)
	}
	if mode == host.CloneFull {
		return nil
	}
	return tooDeep("a linked clone of disk "+o.disk, o.links+1)
}

type takenKey struct{}

// WhenTaken returns a context with which CreateFrom calls f once it needs nothing of the source any more: who
// locks the source may let it go.
func WhenTaken(ctx context.Context, f func()) context.Context {
	return context.WithValue(ctx, takenKey{}, f)
}

func taken(ctx context.Context) {
	if f, ok := ctx.Value(takenKey{}).(func()); ok {
		f()
	}
}

// fullPrefix begins the names of the source's links in the directory of a full clone.
const fullPrefix = "disk-source"

// restore makes the links of a disk that has a source, and commits. Steps:
//
//  1. take the source's links (take)               crash until 4: unreferenced files, collected by the retry
//  2. linked: put an empty child of the wanted size on top; it is the head
//     full:   copy the content into a base of the wanted kind and size
//  3. make the names durable
//  4. commit manifest 1-1, released                the commit point
//  5. full: remove the source's links again        crash: unreferenced files, collected by the first attach
func (v *Volumes) restore(ctx context.Context, vol *datastore.Volume, rec datastore.Record, source Server) (datastore.Manifest, error) {
	full := rec.CloneMode == string(host.CloneFull)
	how := Shared{UUID: rec.UUID}
	if full {
		how.Prefix = fullPrefix
	}
	links, err := v.take(ctx, vol, rec, how, source)
	taken(ctx)
	if err != nil {
		return datastore.Manifest{}, fault.Wrap(uncommitted{err}, "create disk %s", rec.ID)
	}
	m := datastore.Manifest{UUID: rec.UUID, State: lease.State{Epoch: 1, Seq: 1, Owner: v.me, Released: true}}
	if full {
		base, ferr := v.engine.Flatten(ctx, vol.Dir(), links, NewLink{
			Descriptor: headDescriptor, UUID: rec.UUID, Size: rec.Size, Format: host.DiskFormat(rec.Format), Type: host.DiskType(rec.Type),
		}, nil)
		m, err = withLinks(m, []datastore.Link{base}), ferr
	} else {
		top := links[len(links)-1]
		var name string
		if name, err = childName(vol, datastore.Manifest{Links: links}); err == nil {
			var child datastore.Link
			child, err = v.engine.Child(ctx, vol.Dir(), top.Descriptor, NewLink{Descriptor: name, Size: rec.Size})
			m = withLinks(m, append(slices.Clone(links), child))
		}
	}
	if err == nil {
		err = vol.Dir().Sync()
	}
	if err != nil {
		return datastore.Manifest{}, fault.Wrap(uncommitted{err}, "create disk %s", rec.ID)
	}
	if err := vol.Commit(m); err != nil {
		return m, lost(rec.ID, err)
	}
	if full {
		v.dropGone(vol, datastore.Manifest{Links: links}, m)
	}
	return m, nil
}

// take gives vol's directory the links of its record's source. The source's disk is held meanwhile: nobody merges or writes
// what is shared. Steps:
//
//  1. attached here: nothing for a snapshot, whose links nobody writes; else the worker puts a child on top of the head,
//     and that is committed. Detached: hold the disk; not a snapshot: commit that its head is frozen.
//     crash: the source has one more link, or is held by this host, which acquires it again; its head stays frozen
//  2. share the links                               crash: unreferenced files in vol; the source's head sees its link count
//  3. detached: release the disk
//
// From 1 on the source's head is not written: a frozen head is thawed only when nobody else has a name for its files.
func (v *Volumes) take(ctx context.Context, vol *datastore.Volume, rec datastore.Record, how Shared, source Server) ([]datastore.Link, error) {
	o, err := v.origin(*rec.Source)
	if err != nil {
		return nil, err
	}
	s, err := v.begin(ctx, o.disk, "clone")
	if err != nil {
		return nil, err
	}
	defer s.end()
	srec, m, err := s.read()
	if err != nil {
		return nil, err
	}
	if o, err = v.origin(*rec.Source); err == nil { // again, under the lock
		err = fits(rec.Size, host.CloneMode(rec.CloneMode), o)
	}
	if err != nil {
		return nil, err
	}
	if source != nil {
		if m, err = v.pointServed(ctx, s, m, o, source); err != nil {
			return nil, err
		}
		return v.share(ctx, s, m, rec, vol, how, 1)
	}
	if m, err = v.pointFree(ctx, s, srec, m, o); err != nil {
		return nil, err
	}
	links, err := v.share(ctx, s, m, rec, vol, how, 0)
	return links, errors.Join(err, v.let(s, m))
}

// pointServed is step 1 of a source that is attached here.
func (v *Volumes) pointServed(ctx context.Context, s *session, m datastore.Manifest, o origin, source Server) (datastore.Manifest, error) {
	if err := v.serving(s.ID(), m); err != nil {
		return m, err
	}
	if m.Merge != nil {
		return m, fault.New(fault.InProgress, "Try again.", "an interrupted merge of links of disk %s is to be finished first", s.ID())
	}
	if o.snapshot {
		return m, nil
	}
	if err := tooDeep("a clone of disk "+s.ID(), depth(m)+1); err != nil {
		return m, err
	}
	m, after, err := v.newHead(ctx, s, m, source, func(next datastore.Manifest, _ datastore.Link) datastore.Manifest { return next })
	return m, errors.Join(after, err) // a poisoned worker keeps its locks on the files that are to be read
}

// pointFree is step 1 of a source that nobody serves. The caller releases it.
func (v *Volumes) pointFree(ctx context.Context, s *session, rec datastore.Record, m datastore.Manifest, o origin) (datastore.Manifest, error) {
	freeze := func(m datastore.Manifest) datastore.Manifest {
		m.Links = slices.Clone(m.Links)
		m.Links[len(m.Links)-1].Frozen = true
		return m
	}
	needed := !o.snapshot && !m.Head().Frozen
	if needed {
		if err := tooDeep("a clone of disk "+s.ID(), depth(m)+1); err != nil {
			return m, err
		}
	}
	if needed && free(m) {
		m = freeze(m) // with the commit of the epoch
	}
	m, before, err := v.hold(ctx, s, rec, m)
	if err != nil {
		return m, err
	}
	if !o.snapshot && !m.Head().Frozen {
		next := freeze(m)
		next.State = lease.Next(m.State)
		if err := s.Commit(next); err != nil {
			return m, errors.Join(lost(s.ID(), err), v.giveBack(s.Volume, m, before))
		}
		m = next
	}
	return m, nil
}

// share is step 2. above is how many links lie above the disk's content that was asked for.
func (v *Volumes) share(ctx context.Context, s *session, m datastore.Manifest, rec datastore.Record, vol *datastore.Volume, how Shared, above int) ([]datastore.Link, error) {
	n := len(m.Links) - above
	if rec.Source.Snapshot != "" {
		p := find(m, rec.Source.Snapshot)
		if p == nil {
			return nil, noSnapshot(rec.Source.Snapshot)
		}
		n = m.Index(p.Link) + 1
	}
	// A link is shared clean or not at all: with a second name nobody mends it any more. A process that died right after a
	// snapshot's commit may have left its parent marked.
	if err := v.engine.Mend(ctx, s.Dir(), m.Links[:n]); err != nil {
		return nil, err
	}
	return v.engine.Share(ctx, s.Dir(), m.Links[:n], vol.Dir(), how)
}
