package local_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/host/hosttest"
	"github.com/vmdk-csi/vmdk-csi/pkg/host/local"
)

const mib = 1 << 20

func TestConforms(t *testing.T) {
	hosttest.Run(t, func(t *testing.T) hosttest.Subject {
		return hosttest.Subject{Host: newRig(t).open(t), Node: "node-a", Datastore: "a", OtherDatastore: "b", Session: hosttest.NoKernel}
	})
}

func TestSnapshotsConform(t *testing.T) {
	hosttest.RunSnapshots(t, func(t *testing.T) hosttest.Subject {
		return hosttest.Subject{Host: newRig(t).open(t), Node: "node-a", Datastore: "a", OtherDatastore: "b", Session: hosttest.NoKernel}
	})
}

func create(t *testing.T, h *local.Host, name, datastore string) host.Disk {
	t.Helper()
	d, err := h.Create(t.Context(), host.DiskSpec{Name: name, Datastore: datastore, Size: 4 * mib})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func attach(t *testing.T, h *local.Host, id string) host.Attachment {
	t.Helper()
	a, err := h.Attach(t.Context(), host.AttachRequest{ID: id}, hosttest.NoKernel(t, id).Device())
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestConfigIsChecked(t *testing.T) {
	for what, change := range map[string]func(*local.Config){
		"relative path":   func(c *local.Config) { c.Datastores[0].Path = "a" },
		"path with ..":    func(c *local.Config) { c.Datastores[0].Path += "/../b" },
		"name twice":      func(c *local.Config) { c.Datastores[0].Name = "b" },
		"directory twice": func(c *local.Config) { c.Datastores[0].Path = c.Datastores[1].Path },
		"name as path":    func(c *local.Config) { c.Datastores[0].Name = "../a" },
		"scope":           func(c *local.Config) { c.Datastores[0].Scope = "galaxy" },
		"no node":         func(c *local.Config) { c.Host.Host = "" },
	} {
		r := newRig(t)
		change(&r.cfg)
		if _, err := local.New(r.cfg); !errors.Is(err, fault.Invalid) {
			t.Errorf("%s: %v, want Invalid", what, err)
		}
	}
}

func TestMissingDatastore(t *testing.T) {
	r := newRig(t)
	if err := os.Remove(filepath.Join(r.root, "b")); err != nil {
		t.Fatal(err)
	}
	h := r.open(t)
	d := create(t, h, "x", "a")
	_, err := h.Create(t.Context(), host.DiskSpec{Name: "y", Datastore: "b", Size: mib})
	var f *fault.Fault
	if !errors.As(err, &f) || f.Kind != fault.NotFound || f.Remedy == "" {
		t.Fatalf("create on a missing datastore: %v", err)
	}
	if _, err := os.Stat(filepath.Join(r.root, "b")); err == nil {
		t.Fatal("the missing root was made")
	}
	list, err := h.Datastores(t.Context())
	if err != nil || !list[0].Hosts[0].Ready || list[1].Hosts[0].Ready || !strings.Contains(list[1].Hosts[0].Reason, "does not exist") {
		t.Fatalf("%+v %v", list, err)
	}
	if _, err := h.Get(t.Context(), host.DiskID("y")); !errors.Is(err, fault.Unavailable) {
		t.Fatalf("a disk that may be on it: %v", err)
	}
	if err := h.Delete(t.Context(), host.DiskID("y")); !errors.Is(err, fault.Unavailable) {
		t.Fatalf("delete of a disk that may be on it: %v", err)
	}
	if err := h.Delete(t.Context(), d.ID); err != nil {
		t.Fatalf("delete on the one that is there: %v", err)
	}
	if err := os.Mkdir(filepath.Join(r.root, "b"), 0o755); err != nil {
		t.Fatal(err)
	}
	create(t, h, "y", "b")
}

// An unmounted datastore leaves the empty directory of its mount point: nothing may be made there.
func TestUnmountedDatastore(t *testing.T) {
	r := newRig(t)
	running := r.open(t)
	d := create(t, running, "x", "a")
	path := filepath.Join(r.root, "a")
	if err := errors.Join(os.Rename(path, path+"-away"), os.Mkdir(path, 0o755)); err != nil {
		t.Fatal(err)
	}
	for what, h := range map[string]*local.Host{"after a restart": r.open(t), "while it runs": running} {
		if _, err := h.Create(t.Context(), host.DiskSpec{Name: "y", Datastore: "a", Size: mib}); !errors.Is(err, fault.Precondition) {
			t.Fatalf("%s: create under a missing mount: %v", what, err)
		}
		if _, err := h.Get(t.Context(), d.ID); !errors.Is(err, fault.Unavailable) {
			t.Fatalf("%s: get: %v", what, err)
		}
	}
	if left, err := os.ReadDir(path); err != nil || len(left) != 0 {
		t.Fatalf("%v was made under the missing mount (%v)", left, err)
	}
	if err := errors.Join(os.Remove(path), os.Rename(path+"-away", path)); err != nil {
		t.Fatal(err)
	}
	if _, err := running.Get(t.Context(), d.ID); err != nil {
		t.Fatalf("mounted again: %v", err)
	}
}

func TestClaimsSurviveARestart(t *testing.T) {
	r := newRig(t)
	h := r.open(t)
	d := create(t, h, "x", "a")
	if err := h.Claim(t.Context(), d.ID, host.Claim{Node: "node-a"}); err != nil {
		t.Fatal(err)
	}
	if err := r.open(t).Delete(t.Context(), d.ID); !errors.Is(err, fault.InUse) {
		t.Fatalf("delete after a restart: %v", err)
	}
}

func TestDetachWaitsForTheKernel(t *testing.T) {
	r := newRig(t)
	h := r.open(t)
	d := create(t, h, "x", "a")
	attach(t, h, d.ID)
	r.inUse = true
	if err := h.Detach(t.Context(), d.ID); !errors.Is(err, fault.InUse) {
		t.Fatalf("detach of a device in use: %v", err)
	}
	if err := h.Unclaim(t.Context(), d.ID, ""); !errors.Is(err, fault.InUse) {
		t.Fatalf("unclaim of an attached disk: %v", err)
	}
	r.inUse = false
	r.workers.stopErr = fault.New(fault.Unavailable, "", "it died")
	if err := h.Detach(t.Context(), d.ID); !errors.Is(err, fault.Unavailable) {
		t.Fatalf("detach while the worker is restarted: %v", err)
	}
	r.workers.stopErr = fault.New(fault.Poisoned, "", "fsync failed")
	if err := h.Detach(t.Context(), d.ID); !errors.Is(err, fault.Poisoned) {
		t.Fatalf("detach of a poisoned disk: %v", err)
	}
	if list, _ := h.Attachments(t.Context()); len(list) != 0 {
		t.Fatalf("still attached: %+v", list)
	}
	a := attach(t, h, d.ID)
	if a.Epoch < 3 {
		t.Fatalf("epoch %d after a release and an acquisition", a.Epoch)
	}
}

func TestFailedAttachLeavesNothing(t *testing.T) {
	r := newRig(t)
	h := r.open(t)
	d := create(t, h, "x", "b")
	r.workers.failNext = fault.New(fault.Unsupported, "", "no FUSE here")
	if _, err := h.Attach(t.Context(), host.AttachRequest{ID: d.ID}, hosttest.NoKernel(t, d.ID).Device()); !errors.Is(err, fault.Unsupported) {
		t.Fatalf("%v", err)
	}
	if _, err := h.Attach(t.Context(), host.AttachRequest{ID: d.ID, Transport: "san"}, hosttest.NoKernel(t, d.ID).Device()); !errors.Is(err, fault.Invalid) {
		t.Fatalf("an unknown transport: %v", err)
	}
	other := *r
	other.cfg.Host.Host = "node-b"
	if err := os.Mkdir(filepath.Join(r.root, "state-b"), 0o755); err != nil {
		t.Fatal(err)
	}
	other.cfg.StateDir = filepath.Join(r.root, "state-b")
	hb := other.open(t)
	attach(t, hb, d.ID) // the failed attach must have been released cleanly
	_, err := h.Attach(t.Context(), host.AttachRequest{ID: d.ID}, hosttest.NoKernel(t, d.ID).Device())
	if !errors.Is(err, fault.InUse) || !strings.Contains(err.Error(), "node-b") {
		t.Fatalf("attach of another host's disk: %v", err)
	}
	if err := h.Delete(t.Context(), d.ID); !errors.Is(err, fault.InUse) {
		t.Fatalf("delete of another host's disk: %v", err)
	}
	if err := hb.Detach(t.Context(), d.ID); err != nil {
		t.Fatal(err)
	}
	attach(t, h, d.ID)
}

// Of every datastore the host tells each transport: the one that it can use and by what, and why not the others.
func TestTransportsAreTold(t *testing.T) {
	r := newRig(t)
	if err := os.Remove(filepath.Join(r.root, "b")); err != nil {
		t.Fatal(err)
	}
	list, err := r.open(t).Datastores(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i, usable := range []bool{true, false} {
		views := list[i].Hosts[0].Transports
		if list[i].Kind != host.Directory || len(views) != 3 {
			t.Fatalf("%+v", list[i])
		}
		for _, v := range views {
			if want := usable && v.Transport == "hotadd"; v.Usable != want || (v.Reason == nil) != want || (v.Detail != "") != want {
				t.Errorf("datastore %s: %+v %v", list[i].Name, v, v.Reason)
			}
		}
	}
}
