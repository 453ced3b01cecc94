package driver

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/host/hosttest"
)

func TestVolumeHealth(t *testing.T) {
	ctx := context.Background()
	c, m := newController(t)
	w := newWorld(t, c, m)
	health := func(id string) string {
		t.Helper()
		r, err := c.ControllerGetVolumeHealth(ctx, &csi.ControllerGetVolumeHealthRequest{VolumeId: id})
		if err != nil || r.GetVolumeHealth().GetVolumeId() != id {
			t.Fatalf("%v, %v", r, err)
		}
		var all []string
		for _, e := range r.GetVolumeHealth().GetHealthStatuses() {
			all = append(all, fmt.Sprint(e.GetStatus(), " ", e.GetReason(), ": ", e.GetMessage()))
		}
		return strings.Join(all, "; ")
	}
	sick := func(page int32) (ids []string) {
		t.Helper()
		for token := ""; ; {
			l, err := c.ControllerListVolumeHealth(ctx, &csi.ControllerListVolumeHealthRequest{MaxEntries: page, StartingToken: token})
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range l.GetEntries() {
				ids = append(ids, e.GetVolumeId())
			}
			if token = l.GetNextToken(); token == "" {
				return ids
			}
		}
	}
	if got := health(w.volume); got != "" || len(sick(0)) != 0 {
		t.Fatalf("all is well: %s, %v", got, sick(0))
	}
	if _, err := m.Attach(ctx, host.AttachRequest{ID: w.volume}, hosttest.NoKernel(t, w.volume).Device()); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		why  *fault.Fault
		want string
	}{
		{fault.New(fault.NoSpace, "Free space.", "the datastore is full"), "DEGRADED NoSpace: on node node-a: the datastore is full (Free space.)"},
		{fault.New(fault.Poisoned, "", "a sync failed"), "DATA_LOSS Poisoned: on node node-a: a sync failed"},
	} {
		m.SetTrouble(w.volume, tc.why)
		if got := health(w.volume); got != tc.want {
			t.Errorf("%v: %s", tc.why, got)
		}
	}
	m.SetPhase(w.restored, host.Failed, "a table is damaged")
	if got := health(w.restored); got != "DATA_LOSS Damaged: a table is damaged" {
		t.Errorf("damaged: %s", got)
	}
	if got := sick(1); len(got) != 2 {
		t.Errorf("sick are %v", got)
	}
	m.SetDatastore(host.Datastore{Name: "local", Scope: host.ScopeNode, Hosts: []host.DatastoreHost{
		{Host: "node-a", Reason: "hostd does not answer"}, {Host: "node-b", Ready: true, Free: gib, Total: gib}}})
	if got := health(w.deleting); got != "INACCESSIBLE DatastoreNotReady: datastore local: node-a: hostd does not answer" {
		t.Errorf("out of reach: %s", got)
	}
	m.FailNext(func(method, _ string) error {
		if method == "get" {
			return fault.New(fault.Damaged, "", "a manifest is damaged")
		}
		return nil
	})
	if got := health(w.volume); !strings.HasPrefix(got, "DATA_LOSS Damaged:") || !strings.HasSuffix(got, "a manifest is damaged") {
		t.Errorf("cannot be read: %s", got)
	}
	m.FailNext(nil)
	for id, code := range map[string]codes.Code{"": codes.InvalidArgument, "../x": codes.NotFound, host.DiskID("none"): codes.NotFound,
		w.retired: codes.NotFound, w.pending: codes.NotFound} {
		_, err := c.ControllerGetVolumeHealth(ctx, &csi.ControllerGetVolumeHealthRequest{VolumeId: id})
		wantCode(t, "health of "+id, err, code)
	}
	_, err := c.ControllerListVolumeHealth(ctx, &csi.ControllerListVolumeHealthRequest{StartingToken: "x"})
	wantCode(t, "a bad token", err, codes.Aborted)
	_, err = c.ControllerListVolumeHealth(ctx, &csi.ControllerListVolumeHealthRequest{MaxEntries: -1})
	wantCode(t, "a negative page", err, codes.InvalidArgument)
}
