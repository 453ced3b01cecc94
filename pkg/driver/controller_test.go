package driver

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/host/hosttest"
)

var rwo = mountCap(csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER, "")

func request(name string, change ...func(*csi.CreateVolumeRequest)) *csi.CreateVolumeRequest {
	r := &csi.CreateVolumeRequest{Name: name, VolumeCapabilities: []*csi.VolumeCapability{rwo}, Parameters: map[string]string{"datastore": "local"}}
	for _, c := range change {
		c(r)
	}
	return r
}

func newController(t *testing.T) (csi.ControllerServer, *hosttest.Memory) {
	t.Helper()
	m := hosttest.NewMemory("node-a", "node-b")
	t.Cleanup(m.Close)
	return NewController(m), m
}

func wantCode(t *testing.T, what string, err error, want codes.Code) {
	t.Helper()
	if status.Code(err) != want {
		t.Errorf("%s: %v, want %s", what, err, want)
	}
}

func TestErrorCodes(t *testing.T) {
	for kind, code := range codeOf {
		if got := status.Code(toStatus(fmt.Errorf("around: %w", fault.New(kind, "do this", "that")))); got != code {
			t.Errorf("%s: %s, want %s", kind, got, code)
		}
	}
	all := []fault.Kind{fault.Invalid, fault.OutOfRange, fault.NotFound, fault.Exists, fault.InProgress, fault.InUse, fault.Precondition,
		fault.NoSpace, fault.Exhausted, fault.ReadOnly, fault.Damaged, fault.Unsupported, fault.Poisoned, fault.Unavailable, fault.Timeout,
		fault.Denied, fault.Fenced, fault.Internal}
	for _, kind := range all {
		if _, ok := codeOf[kind]; !ok {
			t.Errorf("kind %s has no code", kind)
		}
	}
	wantCode(t, "nil", toStatus(nil), codes.OK)
	wantCode(t, "an error without a kind", toStatus(errors.New("x")), codes.Internal)
	wantCode(t, "canceled", toStatus(context.Canceled), codes.Canceled)
	wantCode(t, "deadline", toStatus(context.DeadlineExceeded), codes.DeadlineExceeded)
	wantCode(t, "a status", toStatus(status.Error(codes.Aborted, "x")), codes.Aborted)
	wantCode(t, "a bad token", toListStatus(fault.New(fault.Invalid, "", "x")), codes.Aborted)
	if err := toStatus(fault.New(fault.NoSpace, "Free space.", "full")); !strings.Contains(err.Error(), "Free space.") {
		t.Errorf("the remedy is lost: %v", err)
	}
}

func TestCreateVolume(t *testing.T) {
	ctx := context.Background()
	c, _ := newController(t)
	first, err := c.CreateVolume(ctx, request("a"))
	if err != nil {
		t.Fatal(err)
	}
	v := first.GetVolume()
	if v.GetCapacityBytes() != gib || v.GetVolumeId() != host.DiskID("a") || len(v.GetAccessibleTopology()) != 1 ||
		v.GetVolumeContext()["partition"] != "none" {
		t.Errorf("volume: %v", v)
	}
	again, err := c.CreateVolume(ctx, request("a"))
	if err != nil || again.String() != first.String() {
		t.Errorf("again: %v, %v", again, err)
	}
	for what, change := range map[string]func(*csi.CreateVolumeRequest){
		"size":      func(r *csi.CreateVolumeRequest) { r.CapacityRange = &csi.CapacityRange{RequiredBytes: 2 * gib} },
		"format":    func(r *csi.CreateVolumeRequest) { r.Parameters["diskFormat"] = "zeroedthick" },
		"datastore": func(r *csi.CreateVolumeRequest) { r.Parameters["datastore"] = "shared" },
	} {
		_, err := c.CreateVolume(ctx, request("a", change))
		wantCode(t, "another "+what, err, codes.AlreadyExists)
	}
	for what, tc := range map[string]struct {
		change func(*csi.CreateVolumeRequest)
		code   codes.Code
	}{
		"no capability": {func(r *csi.CreateVolumeRequest) { r.VolumeCapabilities = nil }, codes.InvalidArgument},
		"many writers": {func(r *csi.CreateVolumeRequest) {
			r.VolumeCapabilities = []*csi.VolumeCapability{mountCap(csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER, "")}
		}, codes.InvalidArgument},
		"no such store":  {func(r *csi.CreateVolumeRequest) { r.Parameters["datastore"] = "nowhere" }, codes.InvalidArgument},
		"no store named": {func(r *csi.CreateVolumeRequest) { delete(r.Parameters, "datastore") }, codes.InvalidArgument},
		"a mutable":      {func(r *csi.CreateVolumeRequest) { r.MutableParameters = map[string]string{"a": "b"} }, codes.InvalidArgument},
		"a source":       {func(r *csi.CreateVolumeRequest) { r.VolumeContentSource = &csi.VolumeContentSource{} }, codes.InvalidArgument},
		"a long name":    {func(r *csi.CreateVolumeRequest) { r.Name = strings.Repeat("x", 1000) }, codes.InvalidArgument},
		"too large":      {func(r *csi.CreateVolumeRequest) { r.CapacityRange = &csi.CapacityRange{RequiredBytes: 63 * tib} }, codes.OutOfRange},
		"too small (xfs)": {func(r *csi.CreateVolumeRequest) {
			r.CapacityRange = &csi.CapacityRange{RequiredBytes: mib}
			r.VolumeCapabilities = []*csi.VolumeCapability{mountCap(csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER, "xfs")}
		}, codes.OutOfRange},
		"full": {func(r *csi.CreateVolumeRequest) {
			r.Parameters["diskFormat"] = "zeroedthick"
			r.CapacityRange = &csi.CapacityRange{RequiredBytes: 2 * tib}
		}, codes.ResourceExhausted},
		"no such node": {func(r *csi.CreateVolumeRequest) {
			r.AccessibilityRequirements = &csi.TopologyRequirement{Requisite: topologyOf([]string{"node-z"})}
		}, codes.ResourceExhausted},
	} {
		_, err := c.CreateVolume(ctx, request("b", tc.change))
		wantCode(t, what, err, tc.code)
	}
	list, err := c.ListVolumes(ctx, &csi.ListVolumesRequest{})
	if err != nil || len(list.GetEntries()) != 1 {
		t.Errorf("refused volumes left something: %v, %v", list, err)
	}
}

func TestTopology(t *testing.T) {
	ctx := context.Background()
	c, m := newController(t)
	on := func(preferred, requisite []string) func(*csi.CreateVolumeRequest) {
		return func(r *csi.CreateVolumeRequest) {
			r.AccessibilityRequirements = &csi.TopologyRequirement{Preferred: topologyOf(preferred), Requisite: topologyOf(requisite)}
		}
	}
	for name, tc := range map[string]struct {
		wish func(*csi.CreateVolumeRequest)
		want string
	}{
		"preferred first": {on([]string{"node-b", "node-a"}, []string{"node-a", "node-b"}), "node-b"},
		"requisite":       {on(nil, []string{"node-b"}), "node-b"},
		"unknown first":   {on([]string{"node-z"}, []string{"node-z", "node-a"}), "node-a"},
	} {
		r, err := c.CreateVolume(ctx, request(name, tc.wish))
		if err != nil || nodesOf(r.GetVolume().GetAccessibleTopology())[0] != tc.want {
			t.Errorf("%s: %v, %v", name, r, err)
		}
	}
	shared, err := c.CreateVolume(ctx, request("s", on([]string{"node-b"}, nil), func(r *csi.CreateVolumeRequest) { r.Parameters["datastore"] = "shared" }))
	if err != nil || len(shared.GetVolume().GetAccessibleTopology()) != 0 {
		t.Errorf("a shared datastore restricts nothing: %v, %v", shared, err)
	}
	// The node of an existing volume stopped reporting: the repeated request still finds the volume.
	m.SetDatastore(host.Datastore{Name: "local", Scope: host.ScopeNode, Hosts: []host.DatastoreHost{
		{Host: "node-a", Ready: true, Free: 10 * gib, Total: tib}, {Host: "node-b", Reason: "hostd does not answer"}}})
	if _, err := c.CreateVolume(ctx, request("requisite", on(nil, []string{"node-b"}))); err != nil {
		t.Errorf("again: %v", err)
	}
	_, err = c.CreateVolume(ctx, request("new", on(nil, []string{"node-b"})))
	wantCode(t, "a node that is not ready", err, codes.ResourceExhausted)
	if !strings.Contains(err.Error(), "hostd does not answer") {
		t.Errorf("the reason is lost: %v", err)
	}
	for _, tc := range []struct {
		params map[string]string
		node   string
		want   int64
	}{
		{map[string]string{"datastore": "local"}, "node-a", 10 * gib},
		{map[string]string{"datastore": "local"}, "node-b", 0},
		{map[string]string{"datastore": "local"}, "", 10 * gib},
		{map[string]string{"datastore": "shared"}, "", tib},
		{nil, "", tib + 10*gib},
		{map[string]string{"datastore": "nowhere"}, "", 0},
	} {
		req := &csi.GetCapacityRequest{Parameters: tc.params}
		if tc.node != "" {
			req.AccessibleTopology = topologyOf([]string{tc.node})[0]
		}
		if r, err := c.GetCapacity(ctx, req); err != nil || r.GetAvailableCapacity() != tc.want {
			t.Errorf("capacity %+v: %v, %v", tc, r, err)
		}
	}
}

func TestPublishExpandDelete(t *testing.T) {
	ctx := context.Background()
	c, _ := newController(t)
	v, err := c.CreateVolume(ctx, request("a", func(r *csi.CreateVolumeRequest) { r.Parameters["datastore"] = "shared" }))
	if err != nil {
		t.Fatal(err)
	}
	id := v.GetVolume().GetVolumeId()
	publish := func(node string, readOnly bool) error {
		_, err := c.ControllerPublishVolume(ctx, &csi.ControllerPublishVolumeRequest{VolumeId: id, NodeId: node, VolumeCapability: rwo, Readonly: readOnly})
		return err
	}
	for range 2 {
		wantCode(t, "publish", publish("node-a", false), codes.OK)
	}
	wantCode(t, "in the other mode", publish("node-a", true), codes.AlreadyExists)
	wantCode(t, "elsewhere", publish("node-b", false), codes.FailedPrecondition)
	wantCode(t, "on no node", publish("node-z", false), codes.NotFound)
	got, err := c.ControllerGetVolume(ctx, &csi.ControllerGetVolumeRequest{VolumeId: id})
	if err != nil || fmt.Sprint(got.GetStatus().GetPublishedNodeIds()) != "[node-a]" {
		t.Errorf("published on: %v, %v", got, err)
	}
	_, err = c.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: id})
	wantCode(t, "delete while published", err, codes.FailedPrecondition)
	expand := func(required, limit int64) (int64, error) {
		r, err := c.ControllerExpandVolume(ctx, &csi.ControllerExpandVolumeRequest{VolumeId: id,
			CapacityRange: &csi.CapacityRange{RequiredBytes: required, LimitBytes: limit}})
		return r.GetCapacityBytes(), err
	}
	for _, tc := range []struct{ required, limit, want int64 }{{2*gib - 1, 0, 2 * gib}, {gib, 0, 2 * gib}, {2 * gib, 2 * gib, 2 * gib}} {
		if got, err := expand(tc.required, tc.limit); err != nil || got != tc.want {
			t.Errorf("expand %+v: %d, %v", tc, got, err)
		}
	}
	_, err = expand(gib, gib)
	wantCode(t, "shrink", err, codes.OutOfRange)
	for _, node := range []string{"node-a", "", "node-a"} {
		_, err := c.ControllerUnpublishVolume(ctx, &csi.ControllerUnpublishVolumeRequest{VolumeId: id, NodeId: node})
		wantCode(t, "unpublish", err, codes.OK)
	}
	for range 2 {
		_, err = c.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: id})
		wantCode(t, "delete", err, codes.OK)
	}
	_, err = c.ControllerGetVolume(ctx, &csi.ControllerGetVolumeRequest{VolumeId: id})
	wantCode(t, "get after delete", err, codes.NotFound)
	_, err = c.ControllerUnpublishVolume(ctx, &csi.ControllerUnpublishVolumeRequest{VolumeId: "../x", NodeId: "node-a"})
	wantCode(t, "unpublish what cannot exist", err, codes.OK)
}

func TestValidateVolumeCapabilities(t *testing.T) {
	ctx := context.Background()
	c, _ := newController(t)
	v, err := c.CreateVolume(ctx, request("a"))
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		caps      []*csi.VolumeCapability
		params    map[string]string
		confirmed bool
	}{
		{[]*csi.VolumeCapability{rwo, blockCap(csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY)}, nil, true},
		{[]*csi.VolumeCapability{mountCap(csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER, "")}, nil, false},
		{[]*csi.VolumeCapability{rwo}, map[string]string{"datastore": "local"}, true},
		{[]*csi.VolumeCapability{rwo}, map[string]string{"diskFormat": "zeroedthick"}, false},
		{[]*csi.VolumeCapability{rwo}, map[string]string{"color": "red"}, false},
	} {
		r, err := c.ValidateVolumeCapabilities(ctx, &csi.ValidateVolumeCapabilitiesRequest{VolumeId: v.GetVolume().GetVolumeId(),
			VolumeCapabilities: tc.caps, Parameters: tc.params})
		if err != nil || (r.GetConfirmed() != nil) != tc.confirmed || !tc.confirmed && r.GetMessage() == "" {
			t.Errorf("%+v: %v, %v", tc, r, err)
		}
	}
}

// Concurrent requests for one name: each succeeds with the same volume or is told to try again.
func TestConcurrentCreates(t *testing.T) {
	ctx := context.Background()
	c, _ := newController(t)
	var wg sync.WaitGroup
	var mu sync.Mutex
	ids := map[string]int{}
	for i := range 16 {
		wg.Go(func() {
			r, err := c.CreateVolume(ctx, request("a", func(r *csi.CreateVolumeRequest) {
				if i%4 == 3 {
					r.CapacityRange = &csi.CapacityRange{RequiredBytes: 2 * gib}
				}
			}))
			mu.Lock()
			defer mu.Unlock()
			switch status.Code(err) {
			case codes.OK:
				ids[fmt.Sprint(r.GetVolume().GetVolumeId(), r.GetVolume().GetCapacityBytes())]++
			case codes.Aborted, codes.AlreadyExists:
			default:
				t.Errorf("create: %v", err)
			}
		})
	}
	wg.Wait()
	if len(ids) != 1 {
		t.Errorf("volumes: %v", ids)
	}
}

func TestBusyVolumeIsAborted(t *testing.T) {
	ctx := context.Background()
	c, m := newController(t)
	in, out := make(chan struct{}), make(chan struct{})
	m.FailNext(func(method, _ string) error {
		if method == "datastores" {
			close(in)
			<-out
		}
		return nil
	})
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = c.CreateVolume(ctx, request("a")) })
	<-in
	_, err := c.CreateVolume(ctx, request("a"))
	wantCode(t, "while one runs", err, codes.Aborted)
	close(out)
	wg.Wait()
}
