package driver

import (
	"context"
	"path/filepath"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/vmdk-csi/vmdk-csi/pkg/stage"
)

type staged struct {
	stage.Volumes
	last stage.Volume
}

func (s *staged) Stage(_ context.Context, v stage.Volume) error { s.last = v; return nil }

// A class's order of transports goes by the volume context to the publish context and from there to the node; no order is none.
func TestTransportOrderReachesTheNode(t *testing.T) {
	ctx := t.Context()
	c, _ := newController(t)
	for _, order := range []string{"", "san:hotadd:nbd", "nbd"} {
		v, err := c.CreateVolume(ctx, request("v"+order, func(r *csi.CreateVolumeRequest) {
			r.Parameters["datastore"] = "shared"
			if order != "" {
				r.Parameters["transport"] = order
			}
		}))
		if err != nil {
			t.Fatal(err)
		}
		vol := v.GetVolume()
		p, err := c.ControllerPublishVolume(ctx, &csi.ControllerPublishVolumeRequest{VolumeId: vol.GetVolumeId(), NodeId: "node-a",
			VolumeCapability: rwo, VolumeContext: vol.GetVolumeContext()})
		if err != nil {
			t.Fatal(err)
		}
		if got, ok := p.GetPublishContext()["transport"]; got != order || ok != (order != "") {
			t.Errorf("%q: publish context %v", order, p.GetPublishContext())
		}
		s := &staged{}
		n := &Node{ID: "node-a", Volumes: s}
		req := &csi.NodeStageVolumeRequest{VolumeId: vol.GetVolumeId(), VolumeCapability: rwo, StagingTargetPath: filepath.Join(t.TempDir(), "s"),
			VolumeContext: vol.GetVolumeContext(), PublishContext: p.GetPublishContext()}
		if _, err := n.NodeStageVolume(ctx, req); err != nil || s.last.Transport != order {
			t.Errorf("%q: staged %+v, %v", order, s.last, err)
		}
		req.PublishContext = map[string]string{"transport": "fc"}
		_, err = n.NodeStageVolume(ctx, req)
		wantCode(t, "an order that nobody knows", err, codes.InvalidArgument)
	}
}
