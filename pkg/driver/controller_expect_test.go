package driver

import (
	"context"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/host/hosttest"
)

// reporting are hosts that say by what they reach datastore "shared".
type reporting struct {
	*hosttest.Memory
	views []host.TransportView
}

func (r reporting) Datastores(ctx context.Context) ([]host.Datastore, error) {
	list, err := r.Memory.Datastores(ctx)
	for i := range list {
		for j := range list[i].Hosts {
			list[i].Hosts[j].Transports = r.views
		}
	}
	return list, err
}

// The publish context says what is likely to serve, and why not what was asked for before it.
func TestExpectedTransport(t *testing.T) {
	hidden := fault.New(fault.NotFound, "Check the zoning.", "the LUN is missing%s", strings.Repeat("€", maxSkipped))
	views := []host.TransportView{{Transport: "san", Reason: hidden}, {Transport: "hotadd", Reason: fault.New(fault.Unsupported, "", "no files")},
		{Transport: "nbd", Usable: true}}
	for _, tc := range []struct {
		order, expected string
		views           []host.TransportView
		skipped         []string
	}{
		{"", "nbd", views, nil},
		{"san:hotadd:nbd", "nbd", views, []string{"san: the LUN is missing"}},
		{"hotadd:nbd:san", "nbd", views, []string{"hotadd: no files"}},
		{"hotadd", "", views, []string{"hotadd: no files"}},
		{"san:nbd", "", nil, nil},
		{"", "", nil, nil},
	} {
		c := &controller{datastores: reporting{hosttest.NewMemory("node-a"), tc.views}}
		got := map[string]string{}
		c.expect(t.Context(), host.Disk{Spec: host.DiskSpec{Datastore: "shared"}}, "node-a", tc.order, got)
		if got[contextExpected] != tc.expected || (got[contextSkipped] != "") != (tc.skipped != nil) || len(got[contextSkipped]) > maxSkipped || !utf8.ValidString(got[contextSkipped]) {
			t.Errorf("%q: %v", tc.order, got)
		}
		for _, s := range tc.skipped {
			if !strings.Contains(got[contextSkipped], s) {
				t.Errorf("%q: %v does not say %q", tc.order, got, s)
			}
		}
	}
}

// A node takes what it does not know in a publish context.
func TestNodeIgnoresExpectations(t *testing.T) {
	s := &staged{}
	n := &Node{ID: "node-a", Volumes: s}
	_, err := n.NodeStageVolume(t.Context(), &csi.NodeStageVolumeRequest{VolumeId: host.DiskID("v"), VolumeCapability: rwo,
		StagingTargetPath: t.TempDir() + "/s", PublishContext: map[string]string{contextExpected: "san", contextSkipped: "nbd: no"}})
	if err != nil || s.last.Transport != "" {
		t.Errorf("%+v, %v", s.last, err)
	}
}
