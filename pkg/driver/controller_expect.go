package driver

import (
	"context"
	"slices"
	"strings"

	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/transport"
)

const (
	// contextExpected is the transport by which the node said last that it reaches the datastore; contextSkipped those that were asked for
	// before it, and why not. They are for people who read a VolumeAttachment: what serves now is in the VirtualDisk's status.
	contextExpected = "expectedTransport"
	contextSkipped  = "skippedTransports"

	// maxSkipped bounds that text: a publish context has 4 KiB (CSI spec, "Size Limits").
	maxSkipped = 1 << 10
)

// expect adds to a publish context what the node's own report makes likely. A node that has not reported yet adds nothing, and
// nothing fails for it.
func (c *controller) expect(ctx context.Context, disk host.Disk, node, order string, publish map[string]string) {
	stores, err := c.datastores.Datastores(ctx)
	if err != nil {
		return
	}
	var views []host.TransportView // the fastest first
	for _, d := range stores {
		i := slices.IndexFunc(d.Hosts, func(h host.DatastoreHost) bool { return h.Host == node })
		if d.Name == disk.Spec.Datastore && i >= 0 {
			views = d.Hosts[i].Transports
		}
	}
	asked, err := transport.ParseOrder(order)
	if err != nil { // "" is the datastore's own: nobody asked for those that it leaves out
		for _, v := range views {
			if v.Usable {
				publish[contextExpected] = v.Transport
				return
			}
		}
		return
	}
	var skipped []string
	for _, name := range asked {
		i := slices.IndexFunc(views, func(v host.TransportView) bool { return v.Transport == name })
		if i < 0 {
			continue
		}
		if views[i].Usable {
			publish[contextExpected] = name
			break
		}
		if views[i].Reason != nil {
			skipped = append(skipped, name+": "+views[i].Reason.Error())
		}
	}
	if text := strings.Join(skipped, "; "); text != "" {
		publish[contextSkipped] = strings.ToValidUTF8(text[:min(len(text), maxSkipped)], "") // gRPC refuses half a character
	}
}
