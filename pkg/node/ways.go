package node

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/host"
)

// settleTime is how long a disk must be reached otherwise, for a reason that is nobody's concern, until that is told: a map that is
// recalled for a change of the disk comes back within seconds, or what keeps it away is known by then.
const settleTime = 10 * time.Second

// tellWays notes on the objects that a disk is reached by another transport than before: it changes while the disk is open,
// because of snapshots, or when a LUN goes away and comes back. What hostd said of a disk that was detached and attached since
// is older than the notice of that, and is left out.
func (h *Holder) tellWays(ctx context.Context, all []host.Attachment) {
	h.mu.Lock()
	defer h.mu.Unlock()
	listed := map[string]bool{}
	for _, a := range all {
		listed[a.ID] = true
		mine, ok := h.held[a.ID]
		if !ok || h.busy[a.ID] != "" || !mine.Attachment.Since.Equal(a.Since) {
			continue
		}
		if h.ways[a.ID] == way(a) {
			delete(h.unsettled, a.ID)
			continue
		}
		if len(a.Skipped) > 0 && !slices.ContainsFunc(a.Skipped, func(s host.Skipped) bool { return !s.ByDesign() }) {
			began, ok := h.unsettled[a.ID]
			if !ok {
				began = time.Now()
				h.unsettled[a.ID] = began
			}
			if time.Since(began) < h.settle {
				continue
			}
		}
		delete(h.unsettled, a.ID)
		h.noteWay(a)
		h.recorder.Attached(ctx, a)
	}
	maps.DeleteFunc(h.ways, func(id, _ string) bool { return !listed[id] && h.busy[id] == "" })
	maps.DeleteFunc(h.unsettled, func(id string, _ time.Time) bool { return !listed[id] })
}

// noteWay keeps what serves a disk now; the caller holds mu. To fall back is to have more transports that do not serve.
func (h *Holder) noteWay(a host.Attachment) {
	if now := way(a); len(a.Skipped) > 0 && strings.Count(now, " ") > strings.Count(h.ways[a.ID], " ") {
		h.fallbacks++
	}
	h.ways[a.ID] = way(a)
}

// Transports tells by which transport each disk that is held is reached, and how often one fell back since the start.
func (h *Holder) Transports() (by map[string]string, fallbacks int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	by = map[string]string{}
	for id, w := range h.ways {
		by[id], _, _ = strings.Cut(w, " ")
	}
	return by, h.fallbacks
}

// way is the transport that serves and those that do not. The reasons may change with every look; they are written when the
// objects are compared with hostd.
func way(a host.Attachment) string {
	names := []string{a.Transport}
	for _, s := range a.Skipped {
		names = append(names, s.Transport)
	}
	return strings.Join(names, " ")
}
