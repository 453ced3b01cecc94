package volume_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/lease"
	"github.com/vmdk-csi/vmdk-csi/pkg/volume"
)

func TestOwnersFollowEachOther(t *testing.T) {
	p := place{t.TempDir()}
	a, b := p.host(t, "a", "1"), p.host(t, "b", "1")
	d := create(t, a, "x")
	o := acquire(t, a, d.ID)
	if o.Epoch != 2 || o.Before != lease.Clean {
		t.Fatalf("%+v", o)
	}
	_, err := b.OpenForAttach(t.Context(), d.ID, false)
	wantKind(t, err, fault.InUse, "attach on a second host")
	if !strings.Contains(err.Error(), `"a"`) {
		t.Fatalf("the fault does not name the holder: %v", err)
	}
	_, err = b.OpenForAttach(t.Context(), d.ID, true)
	wantKind(t, err, fault.InUse, "read while another host writes")
	wantKind(t, b.Delete(t.Context(), d.ID), fault.InUse, "delete another host's disk")
	_, err = b.Expand(t.Context(), d.ID, 8*mib, nil)
	wantKind(t, err, fault.InUse, "expand another host's disk")
	if err := b.Release(t.Context(), d.ID, o.Epoch, false); err != nil {
		t.Fatalf("release by who does not hold it must do nothing: %v", err)
	}
	// Its own crash and its own restart.
	if o := acquire(t, p.host(t, "a", "1"), d.ID); o.Epoch != 3 || o.Before != lease.Crashed {
		t.Fatalf("%+v", o)
	}
	a2 := p.host(t, "a", "2")
	if o = acquire(t, a2, d.ID); o.Epoch != 4 || o.Before != lease.Rebooted {
		t.Fatalf("%+v", o)
	}
	if err := a.Release(t.Context(), d.ID, 2, false); err != nil {
		t.Fatal(err)
	}
	_, err = b.OpenForAttach(t.Context(), d.ID, false)
	wantKind(t, err, fault.InUse, "after the release of an old epoch")
	for range 2 {
		if err := a2.Release(t.Context(), d.ID, o.Epoch, true); err != nil {
			t.Fatal(err)
		}
	}
	if o := acquire(t, b, d.ID); o.Epoch != 5 || o.Before != lease.Clean {
		t.Fatalf("%+v", o)
	}
}

// Many hosts want one released disk, on a file system without locks: one gets it, the others learn so.
func TestOneOfManyHostsWins(t *testing.T) {
	p := place{t.TempDir()}
	d := create(t, p.host(t, "maker", "1"), "x")
	for round := range 20 {
		var mu sync.Mutex
		var wg sync.WaitGroup
		var winners []*volume.Volumes
		var epoch int64
		for _, name := range []string{"a", "b", "c", "d"} {
			v := p.host(t, name, "1")
			wg.Go(func() {
				o, err := v.OpenForAttach(t.Context(), d.ID, false)
				if err != nil {
					if !errors.Is(err, fault.InUse) && !errors.Is(err, fault.InProgress) {
						t.Errorf("a loser got %v", err)
					}
					return
				}
				o.Dir.Close()
				mu.Lock()
				defer mu.Unlock()
				winners, epoch = append(winners, v), o.Epoch
			})
		}
		wg.Wait()
		if len(winners) != 1 {
			t.Fatalf("round %d: %d owners", round, len(winners))
		}
		if err := winners[0].Release(t.Context(), d.ID, epoch, false); err != nil {
			t.Fatal(err)
		}
	}
}

// Two hosts create one name at once: one volume comes of it (I4).
func TestOneNameOneVolume(t *testing.T) {
	for range 10 {
		p := place{t.TempDir()}
		var wg sync.WaitGroup
		var mu sync.Mutex
		uuids := map[string]bool{}
		for _, name := range []string{"a", "b", "c"} {
			v := p.locking(t, name)
			wg.Go(func() {
				d, err := v.Create(t.Context(), spec("x"))
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					uuids[d.UUID] = true
				}
			})
		}
		wg.Wait()
		d := create(t, p.locking(t, "a"), "x") // who lost tries again
		if len(uuids) > 1 || len(uuids) == 1 && !uuids[d.UUID] {
			t.Fatalf("uuids %v, then %s", uuids, d.UUID)
		}
		acquire(t, p.locking(t, "a"), d.ID)
	}
}

func TestReopen(t *testing.T) {
	p := place{t.TempDir()}
	a := p.host(t, "a", "1")
	d := create(t, a, "x")
	o := acquire(t, a, d.ID)
	again, err := a.Reopen(t.Context(), d.ID, o.Epoch)
	if err != nil || again.Epoch != o.Epoch || again.Size != d.Size || again.UUID != d.UUID {
		t.Fatalf("%+v %v", again, err)
	}
	again.Dir.Close()
	for what, v := range map[string]*volume.Volumes{"another host": p.host(t, "b", "1"), "after a restart": p.host(t, "a", "2")} {
		_, err := v.Reopen(t.Context(), d.ID, o.Epoch)
		wantKind(t, err, fault.Precondition, what)
	}
	_, err = a.Reopen(t.Context(), d.ID, o.Epoch+1)
	wantKind(t, err, fault.Precondition, "another epoch")
}

func TestDamagedDisksAreNamed(t *testing.T) {
	p := place{t.TempDir()}
	v := p.host(t, "a", "1")
	good, bad := create(t, v, "good"), create(t, v, "bad")
	path := filepath.Join(p.path, "volumes", bad.ID, "manifest-1-1.json")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, text[:100], 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = v.Get(t.Context(), bad.ID)
	wantKind(t, err, fault.Damaged, "get")
	_, err = v.Create(t.Context(), spec("bad"))
	wantKind(t, err, fault.Damaged, "create")
	_, err = v.OpenForAttach(t.Context(), bad.ID, false)
	wantKind(t, err, fault.Damaged, "attach")
	_, err = v.Expand(t.Context(), bad.ID, 8*mib, nil)
	wantKind(t, err, fault.Damaged, "expand")
	wantKind(t, v.Delete(t.Context(), bad.ID), fault.Damaged, "delete")
	disks, _, err := v.List(t.Context(), 0, "")
	if err != nil || len(disks) != 2 {
		t.Fatalf("list %+v %v", disks, err)
	}
	for _, d := range disks {
		if d.ID == good.ID && d.Phase != host.Ready || d.ID == bad.ID && (d.Phase != host.Failed || !strings.Contains(d.Reason, "manifest-1-1.json")) {
			t.Errorf("listed %+v", d)
		}
	}
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(p.path, "volumes", bad.ID, "disk-flat.vmdk")); err != nil {
		t.Fatal(err)
	}
	_, err = v.Expand(t.Context(), bad.ID, 8*mib, nil)
	if err == nil {
		t.Fatal("a disk without its extent was expanded")
	}
	if err := v.Delete(t.Context(), bad.ID); err != nil {
		t.Fatalf("delete of a disk without its extent: %v", err)
	}
}
