package kube

import (
	"slices"
	"strings"

	"github.com/vmdk-csi/vmdk-csi/pkg/api/v1alpha1"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
)

// sayTransport makes an event of a change of what serves a disk here: one each time that it is not the transport asked for
// first, or is it again. have is what the object said before, nil for nothing.
func (r *recorder) sayTransport(vd *v1alpha1.VirtualDisk, have *v1alpha1.DiskAttachment, now *host.Attachment) {
	if now == nil || have == nil && len(now.Skipped) == 0 || have != nil && sameTransport(*have, attachmentOf(*now, r.node)) {
		return
	}
	if len(now.Skipped) == 0 || have != nil && recovered(*have, now.Transport) {
		r.say(vd, false, "TransportRestored", "node "+r.node+" reaches the disk by "+now.Transport+" again"+insteadOf(have))
		return
	}
	warning := false
	var why []string
	for _, s := range now.Skipped {
		warning = warning || !s.ByDesign()
		why = append(why, s.Transport+": "+s.Reason)
	}
	r.say(vd, warning, "TransportFallback", "node "+r.node+" reaches the disk by "+now.Transport+insteadOf(have)+"; not by "+strings.Join(why, "; not by "))
}

// settling: since the last comparison the disk fell back for a reason that is nobody's concern and may be over in seconds. The node
// service tells it when it lasts, the next comparison at the latest.
func (r *recorder) settling(vd *v1alpha1.VirtualDisk, now *host.Attachment) bool {
	have := attachmentHere(vd, r.node)
	if have == nil || now == nil || len(now.Skipped) == 0 || sameTransport(*have, attachmentOf(*now, r.node)) ||
		slices.ContainsFunc(now.Skipped, func(s host.Skipped) bool { return !s.ByDesign() }) {
		delete(r.fell, vd.Name)
		return false
	}
	first := r.fell[vd.Name] != now.Transport
	r.fell[vd.Name] = now.Transport
	return first
}

func insteadOf(have *v1alpha1.DiskAttachment) string {
	if have == nil {
		return ""
	}
	return ", before by " + have.Transport
}

// recovered: the transport was asked for earlier than the one that served until now.
func recovered(have v1alpha1.DiskAttachment, transport string) bool {
	return slices.ContainsFunc(have.SkippedTransports, func(s v1alpha1.SkippedTransport) bool { return s.Transport == transport })
}

// sameTransport: what serves and what does not is the same, whatever the reasons.
func sameTransport(a, b v1alpha1.DiskAttachment) bool {
	return a.Transport == b.Transport && slices.EqualFunc(a.SkippedTransports, b.SkippedTransports,
		func(a, b v1alpha1.SkippedTransport) bool { return a.Transport == b.Transport })
}

func skippedOf(list []host.Skipped) (out []v1alpha1.SkippedTransport) {
	for _, s := range list {
		// A key of the list: one that is told twice would make the API refuse all of the entry.
		if !slices.ContainsFunc(out, func(have v1alpha1.SkippedTransport) bool { return have.Transport == s.Transport }) {
			out = append(out, v1alpha1.SkippedTransport{Transport: s.Transport, Reason: bounded(s.Reason, 1024)})
		}
	}
	return out
}

func transportsOf(list []host.TransportView) (out []v1alpha1.TransportStatus) {
	for _, v := range list {
		s := v1alpha1.TransportStatus{Transport: v.Transport, Usable: v.Usable}
		if v.Reason != nil {
			s.Reason = bounded(v.Reason.Error(), 1024)
		}
		if !slices.ContainsFunc(out, func(have v1alpha1.TransportStatus) bool { return have.Transport == s.Transport }) {
			out = append(out, s)
		}
	}
	return out
}
