package volume

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/vmdk-csi/vmdk-csi/pkg/datastore"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/lease"
)

// hold makes this host the owner of a disk that nobody serves, and finishes what was interrupted; the caller ends with let,
// or with a commit that releases. Steps:
//
//  1. commit the next epoch                         crash: held by this host, which acquires it again
//  2. if it was not released: check the chain and close it cleanly
//  3. tidy                                          crash: as 1
//
// Kinds: InUse (another host holds it), InProgress, Damaged, NoSpace.
func (v *Volumes) hold(ctx context.Context, s *session, rec datastore.Record, m datastore.Manifest) (datastore.Manifest, lease.Before, error) {
	var before lease.Before
	var err error
	if m.State, before, err = lease.Acquire(m.State, v.me); err != nil {
		return m, before, fault.Wrap(err, "disk %s", s.ID())
	}
	if err := s.Commit(m); err != nil {
		return m, before, lost(s.ID(), err)
	}
	next, err := v.tidy(ctx, s.Volume, rec, m, tidying{mend: true, recover: before != lease.Clean})
	if err != nil {
		return next, before, errors.Join(err, v.giveBack(s.Volume, next, before))
	}
	return next, before, nil
}

// let releases what hold took, whatever became of ctx: everything is closed.
func (v *Volumes) let(s *session, m datastore.Manifest) error {
	var err error
	if m.State, err = lease.Release(m.State, v.me); err != nil {
		return err
	}
	return lost(s.ID(), s.Commit(m))
}

// free says that a disk is released and nothing of it was interrupted, so that one commit can acquire, change and release it.
func free(m datastore.Manifest) bool {
	return m.Released && m.Growing == 0 && m.Merge == nil && m.Behind == ""
}

// tidying is what tidy looks for beside what the manifest says.
type tidying struct {
	mend    bool // parents that are unclean
	recover bool // a head that is
}

// tidy finishes what was interrupted; this host holds the disk and nobody has it open. Steps:
//
//  1. rebind the descriptors that a merge left behind
//  2. make parents clean that a snapshot or merge left unclean
//  3. finish a growth
//  4. commit what came of it: no merge, no growth   crash: the manifest still asks for 1 to 3, which may be repeated
//  5. collect what the manifest does not name
//
// 5 must not come before 4: descriptors may name extents already of which the manifest knows nothing.
func (v *Volumes) tidy(ctx context.Context, vol *datastore.Volume, rec datastore.Record, m datastore.Manifest, t tidying) (datastore.Manifest, error) {
	changed := m.Behind != "" || m.Merge != nil || m.Growing != 0 || t.recover
	if err := v.repair(ctx, vol, m, t); err != nil {
		return m, fault.Wrap(err, "disk %s", vol.ID())
	}
	if m.Growing != 0 {
		err := v.engine.Grow(ctx, vol.Dir(), m.Links, m.Growing, host.DiskFormat(rec.Format))
		if err != nil && !errors.Is(err, fault.NoSpace) {
			return m, fault.Wrap(err, "finish the expansion of disk %s", vol.ID())
		}
	}
	if changed {
		m.Behind, m.Merge = "", nil
		var err error
		if m, err = v.settle(ctx, vol, m, false); err != nil {
			return m, err
		}
	}
	removed, err := vol.Collect(m)
	if err != nil {
		return m, err
	}
	if len(removed) > 0 {
		v.log.Info("unreferenced files removed", "disk", vol.ID(), "files", removed)
	}
	return m, nil
}

// repair is steps 1 and 2 of tidy, and the head.
func (v *Volumes) repair(ctx context.Context, vol *datastore.Volume, m datastore.Manifest, t tidying) error {
	if m.Behind != "" {
		if err := v.engine.Rebind(ctx, vol.Dir(), m.Links, m.UUID, m.Behind == m.Head().Descriptor); err != nil {
			return err
		}
	}
	parents := m.Links[:len(m.Links)-1]
	if m.Head().Frozen && t.recover {
		parents = m.Links // nobody wrote it since it was frozen; it may not have been marked clean
	}
	if t.mend || m.Merge != nil || t.recover {
		if err := v.engine.Mend(ctx, vol.Dir(), parents); err != nil {
			return err
		}
	}
	if t.recover && !m.Head().Frozen {
		return v.engine.Recover(ctx, vol.Dir(), m.Links)
	}
	return nil
}

// writable makes sure that the head may be written, and has at least size bytes if it must be a new one. This host holds the
// disk. A frozen head that no snapshot needs, and whose extents no other disk shares any more, is thawed: nobody can share
// them meanwhile, because that takes this epoch. Else:
//
//  1. make a child and its names durable            crash: unreferenced files, collected by the next tidy
//  2. commit it as the head
func (v *Volumes) writable(ctx context.Context, vol *datastore.Volume, m datastore.Manifest, size int64) (datastore.Manifest, error) {
	head := m.Head()
	if !head.Frozen {
		return m, nil
	}
	if !m.SnapshotAt(head.Descriptor) {
		alone, err := unshared(vol.Dir(), head)
		if err != nil {
			return m, err
		}
		if alone {
			m.Links = slices.Clone(m.Links)
			m.Links[len(m.Links)-1].Frozen = false
			m.State = lease.Next(m.State)
			return m, lost(vol.ID(), vol.Commit(m))
		}
	}
	name, err := childName(vol, m)
	if err != nil {
		return m, err
	}
	child, err := v.engine.Child(ctx, vol.Dir(), head.Descriptor, NewLink{Descriptor: name, Size: max(size, m.Size)})
	if err != nil {
		return m, fault.Wrap(err, "disk %s: a new head", vol.ID())
	}
	next := withHead(m, head, child)
	next.State = lease.Next(m.State)
	if err := vol.Commit(next); err != nil {
		if !errors.Is(err, fault.Poisoned) {
			err = errors.Join(err, vol.Drop(m, child))
		}
		return m, lost(vol.ID(), err)
	}
	return next, nil
}

// withHead is m with child on top of parent, which was the head.
func withHead(m datastore.Manifest, parent, child datastore.Link) datastore.Manifest {
	links := slices.Clone(m.Links)
	m.Links = nil
	links[len(links)-1] = parent
	for i := range links {
		links[i].Frozen = false
	}
	return withLinks(m, append(links, child))
}

// childName is the name of the next delta: one that no link and no file has.
func childName(vol *datastore.Volume, m datastore.Manifest) (string, error) {
	names, err := vol.Dir().List()
	if err != nil {
		return "", err
	}
	for _, l := range m.Links {
		names = append(names, l.Descriptor)
	}
	last := 0
	for _, name := range names {
		// Extents (disk-000001-s001.vmdk) count like descriptors: what an interrupted attempt left keeps its number.
		var n int
		rest, ok := strings.CutPrefix(name, "disk-")
		if ok && len(rest) >= 6 {
			if _, err := fmt.Sscanf(rest[:6], "%06d", &n); err == nil {
				last = max(last, n)
			}
		}
	}
	if last >= 999999 {
		return "", fault.New(fault.Exhausted, "Flatten the disk.", "disk %s has used up the names of its links", vol.ID())
	}
	return fmt.Sprintf("disk-%06d.vmdk", last+1), nil
}

// depth is how many links the disk has, or will have when it is attached next.
func depth(m datastore.Manifest) int {
	n := len(m.Links)
	if m.Head().Frozen {
		n++
	}
	return n
}

// tooDeep refuses a chain of n links.
func tooDeep(what string, n int) error {
	if n <= host.MaxLinks {
		return nil
	}
	return fault.New(fault.Exhausted, "Delete snapshots, or restore one into a new disk with cloneMode full.",
		"%s would make a chain of %d links; %d is the most", what, n, host.MaxLinks)
}

// serving checks that server may change the disk: this host holds it. Kinds: Precondition.
func (v *Volumes) serving(id string, m datastore.Manifest) error {
	if err := lease.Holds(m.State, m.Epoch, v.me); err != nil {
		return err
	}
	if m.Behind != "" {
		return fault.New(fault.Precondition, "Detach and attach the disk: that writes them.",
			"the descriptors of disk %s could not be written when its links were merged", id)
	}
	return nil
}
