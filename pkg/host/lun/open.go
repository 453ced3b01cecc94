package lun

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/nbd"
	"github.com/vmdk-csi/vmdk-csi/pkg/remote"
)

// has says that a node has a disk.
func (s *Server) has(id, node string) bool { return s.sessions.get(id).has(node) }

// Open implements remote.Datastore. Steps:
//
//  1. the session is durable          crash: the next server opens the disk for the node, which asks again or closes it
//  2. the inner host attaches it      crash: as 1
//
// A failure undoes 1 if this call did it.
func (s *Server) Open(ctx context.Context, id, node string, readOnly bool) (remote.Served, error) {
	o, err := s.openFor(ctx, id, node, readOnly)
	return o, s.lost(err)
}

func (s *Server) openFor(ctx context.Context, id, node string, readOnly bool) (remote.Served, error) {
	var none remote.Served
	if node == "" || !host.ValidDiskID(id) {
		return none, fault.New(fault.NotFound, "", "disk %q does not exist", id)
	}
	end, err := s.busy.TryLock(id, "open")
	if err != nil {
		return none, err
	}
	defer end()
	before := s.sessions.get(id)
	next, err := before.add(id, node, readOnly)
	if err != nil {
		return none, err
	}
	if !before.has(node) {
		if err := s.mayOpen(ctx, id, len(before.Nodes) > 0); err != nil { // no file for a disk that is not
			return none, err
		}
		if err := s.sessions.put(id, next); err != nil {
			return none, err
		}
	}
	if err := s.attach(ctx, id); err != nil {
		if !before.has(node) {
			err = errors.Join(err, s.sessions.put(id, before))
		}
		return none, err
	}
	return s.served(ctx, id, readOnly)
}

// mayOpen looks whether there is such a disk and nobody but nodes has it. again: nodes have it already.
func (s *Server) mayOpen(ctx context.Context, id string, again bool) error {
	if d, ok := s.inner.(directory); ok && !again {
		return d.base.Lendable(ctx, id)
	}
	_, err := s.inner.Get(ctx, id)
	return err
}

// add is the session with a node more. Kinds: InUse, Precondition.
func (s session) add(id, node string, readOnly bool) (session, error) {
	switch {
	case s.has(node) && s.evicted(node):
		return s, fault.New(fault.InProgress, "Try again when it is.", "disk %s is being taken from node %q", id, node)
	case s.has(node) && s.ReadOnly == readOnly:
		return s, nil
	case s.has(node):
		return s, fault.New(fault.Precondition, "Detach it first.", "disk %s is open for node %q with readOnly=%v, asked for is readOnly=%v",
			id, node, s.ReadOnly, readOnly)
	case len(s.Nodes) > 0 && !(s.ReadOnly && readOnly):
		return s, fault.New(fault.InUse, "Detach it there first.", "disk %s is attached on node %q", id, s.Nodes[0])
	}
	return session{ReadOnly: readOnly, Nodes: append(slices.Clone(s.Nodes), node), Evicted: less(s.Evicted, node)}, nil
}

// attach has the inner host open a disk that a session says nodes have. It is the disk's own again, whoever served it before.
func (s *Server) attach(ctx context.Context, id string) error {
	if s.serving(id) != nil {
		return nil
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	_, err = s.inner.Attach(ctx, host.AttachRequest{ID: id, ReadOnly: s.sessions.get(id).ReadOnly}, host.Device{Fuse: null, Table: null})
	if err == nil && s.serving(id) == nil {
		err = fault.New(fault.Unavailable, "Try again.", "disk %s is being closed", id)
	}
	return err
}

// served describes an open disk.
func (s *Server) served(ctx context.Context, id string, readOnly bool) (remote.Served, error) {
	w := s.serving(id)
	if w == nil {
		return remote.Served{}, fault.New(fault.Unavailable, "Try again.", "disk %s is being closed", id)
	}
	d, err := s.Get(ctx, id)
	if err != nil {
		return remote.Served{}, err
	}
	out := remote.Served{Disk: d, Export: nbd.Export{
		Device: device{w}, Description: s.c.Datastore + "/" + id, ReadOnly: readOnly, MultiConn: true,
		Allocation: w.allocation, Revoked: s.life,
	}}
	for _, a := range d.Attachments {
		out.Epoch = a.Epoch
	}
	return out, nil
}

// Close implements remote.Datastore. Steps, for the last node that has it:
//
//  1. the inner host closes and releases the disk     crash: the next server opens it again, and the node repeats the close
//  2. the session ends
func (s *Server) Close(ctx context.Context, id, node string) error {
	return s.lost(s.closeFor(ctx, id, node))
}

func (s *Server) closeFor(ctx context.Context, id, node string) error {
	end, err := s.busy.TryLock(id, "close")
	if err != nil {
		return err
	}
	defer end()
	x := s.sessions.get(id)
	if !x.has(node) {
		return nil
	}
	var lost error
	if len(x.Nodes) == 1 {
		switch err := s.inner.Detach(ctx, id); {
		case errors.Is(err, fault.Poisoned):
			lost = err // it is closed, and released after a check
		case err != nil:
			return err
		}
	}
	x.Nodes = less(x.Nodes, node)
	return errors.Join(lost, s.sessions.put(id, x))
}

// attachments are those of a disk as its nodes have it; the inner host's own says the epoch.
func (s *Server) attachments(d *host.Disk) {
	x := s.sessions.get(d.ID)
	var inner host.Attachment
	if len(d.Attachments) > 0 {
		inner = d.Attachments[0]
	}
	d.Attachments = nil
	for _, node := range x.Nodes {
		d.Attachments = append(d.Attachments, host.Attachment{ID: d.ID, Host: node, UUID: d.UUID, Size: d.Size, ReadOnly: x.ReadOnly,
			Epoch: inner.Epoch, Since: inner.Since})
	}
	slices.SortFunc(d.Attachments, func(a, b host.Attachment) int { return strings.Compare(a.Host, b.Host) })
}
