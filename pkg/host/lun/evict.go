package lun

import (
	"context"
	"slices"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/remote"
)

var (
	_ remote.Evictor = (*Server)(nil)
	_ host.Evictor   = (*Host)(nil)
)

// Expel implements remote.Evictor.
func (s *Server) Expel(_ context.Context, id, node string) (bool, error) {
	end, err := s.busy.TryLock(id, "evict")
	if err != nil {
		return false, err
	}
	defer end()
	x := s.sessions.get(id)
	if !x.has(node) || x.evicted(node) {
		return x.has(node), nil
	}
	x.Evicted = append(slices.Clone(x.Evicted), node)
	s.log.Warn("a disk is taken from a node", "disk", id, "node", node)
	return true, s.sessions.put(id, x)
}

// Expelled implements remote.Evictor.
func (s *Server) Expelled(id, node string) bool { return s.sessions.get(id).evicted(node) }

// Evict implements host.Evictor, for disks on LUNs.
func (h *Host) Evict(ctx context.Context, id, node string) error {
	if node == h.c.Node || node == "" {
		return fault.New(fault.Precondition, "Detach it.", "host %q is alive: disk %s is not taken from node %q", h.c.Node, id, node)
	}
	s, err := h.diskOn(ctx, id)
	if err != nil {
		return err
	}
	if s == nil {
		return fault.New(fault.Unsupported, "Bring the node back to release it.", "disk %s is not on a LUN: it is not taken from node %q", id, node)
	}
	if err := h.working(); err != nil {
		return err
	}
	return s.Client.EvictVolume(ctx, id, node)
}
