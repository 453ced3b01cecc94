package vmdkctl

import (
	"bytes"
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/internal/cli"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
)

// WriteLive writes random places of the device, and the same into want.
func (r *storeRig) writeLive(device string, want []byte, writes int) {
	r.t.Helper()
	for range writes {
		p := bytes.Repeat([]byte{byte(1 + r.rnd.IntN(255))}, 512*(1+r.rnd.IntN(200)))
		at := 512 * r.rnd.Int64N(int64(len(want)-len(p))/512)
		writeDevice(r.t, device, at, p)
		copy(want[at:], p)
	}
}

func TestSnapshotsOfAnAttachedDisk(t *testing.T) {
	canAttach(t)
	for _, s := range []string{"monolithicFlat", "twoGbMaxExtentSparse"} {
		t.Run(s, func(t *testing.T) {
			r := newStoreRig(t)
			r.ok(r.on("create", "db", "--size", "8M", "--type", s)...)
			a := r.attach(r.on("db")...)
			now := make([]byte, smallSize)
			contents := map[string][]byte{}
			for _, name := range []string{"monday", "tuesday", "wednesday"} {
				r.writeLive(a.Device, now, 8)
				var snap, again snapshotInfo
				r.json(&snap, r.on("snapshot", "db", name)...)
				r.json(&again, r.on("snapshot", "db", name)...)
				if snap.ID == "" || again.ID != snap.ID || snap.Consistency != host.CrashConsistent {
					t.Errorf("%s: %+v, again %+v", name, snap, again)
				}
				contents[name] = bytes.Clone(now)
			}
			r.killWorker(a.ID) // its successor opens the links that are committed
			r.writeLive(a.Device, now, 8)
			r.ok(r.on("snapshot", "--delete", "tuesday")...)
			var c consolidated
			r.json(&c, r.on("consolidate", "db")...)
			if c.Merged != 1 || c.Links != 3 {
				t.Errorf("consolidate: %+v", c)
			}
			r.killWorker(a.ID)
			r.ok(r.on("clone", "db", "copy")...)
			copied := bytes.Clone(now)
			r.ok(r.on("restore", "monday", "old", "--size", "9M")...)
			r.writeLive(a.Device, now, 8)
			r.readable("monday", contents["monday"])
			r.fails(cli.ExitInUse, "is attached on host", r.on("convert", "db", "copy.raw")...)
			r.fails(cli.ExitInUse, "is attached as", r.on("flatten", "db")...)
			r.fails(cli.ExitInUse, "is attached as", r.on("delete", "db")...)
			r.killWorker(a.ID)
			r.writeLive(a.Device, now, 8)
			last, _ := r.listed(a.ID)
			r.ok(r.on("detach", "db")...)
			r.gone(last)
			r.holds("db", now)
			r.holds("copy", copied)
			r.holds("old", append(bytes.Clone(contents["monday"]), make([]byte, 1<<20)...))
			r.ok(r.on("restore", "wednesday", "later")...)
			r.holds("later", contents["wednesday"])
			r.deleteAll()
		})
	}
}

// Readable fails when the snapshot cannot be looked at and copied, whoever has its disk attached.
func (r *storeRig) readable(snapshot string, want []byte) {
	r.t.Helper()
	r.ok(r.on("check", snapshot)...)
	r.ok(r.on("info", snapshot)...)
	r.ok(r.on("map", snapshot)...)
	r.ok(r.on("convert", snapshot, "backup.raw")...)
	got, err := os.ReadFile(r.path("backup.raw"))
	if err != nil || !bytes.Equal(got, want) {
		r.t.Errorf("a copy of the snapshot %s has other content (%d bytes), %v", snapshot, len(got), err)
	}
	if err := os.Remove(r.path("backup.raw")); err != nil {
		r.t.Fatal(err)
	}
}

// A consolidation of an attached disk that is interrupted leaves the disk in use, and goes on later; a detach ends it.
func TestInterruptedLiveConsolidation(t *testing.T) {
	canAttach(t)
	r := newStoreRig(t)
	now := r.longMerge("db")
	a := r.attach(r.on("db")...)
	merging := func() bool {
		v, err := readVolume(r.dir, host.DiskID("db"))
		return err == nil && v.Manifest.Merge != nil
	}
	until := func(what string, is func() bool) {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); !is(); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s: not within 20 s", what)
			}
		}
	}
	// Begin starts until one has begun: the disk may still be busy with the end of the one before.
	begin := func() (wait func() error) {
		var cmd *exec.Cmd
		ended := make(chan error, 1)
		start := func() {
			cmd = r.command(r.on("consolidate", "db", "--rate", "64k")...)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			go func() { ended <- cmd.Wait() }()
		}
		start()
		until("it begins", func() bool {
			select {
			case <-ended:
				start()
			default:
			}
			return merging()
		})
		return func() error { _ = cmd.Process.Signal(os.Interrupt); return <-ended }
	}
	wait := begin()
	r.writeLive(a.Device, now, 8)
	if err := wait(); err == nil {
		t.Error("an interrupted consolidation succeeded")
	}
	until("the keeper stops it", func() bool { return !merging() })
	wait = begin()
	r.writeLive(a.Device, now, 8)
	last, _ := r.listed(a.ID)
	r.ok(r.on("detach", "db")...)
	r.gone(last)
	if err := wait(); err == nil {
		t.Error("a consolidation that a detach ended succeeded")
	}
	r.holds("db", now)
	var c consolidated
	r.json(&c, r.on("consolidate", "db")...)
	if c.Merged != 1 {
		t.Errorf("went on: %+v", c)
	}
	r.holds("db", now)
}

// What a dead keeper holds is nobody else's.
func TestSnapshotAfterTheKeepersDeath(t *testing.T) {
	canAttach(t)
	r := newStoreRig(t)
	r.ok(r.on("create", "db", "--size", "8M")...)
	a := r.attach(r.on("db")...)
	a, _ = r.listed(a.ID)
	kill(t, a.KeeperPID, unix.SIGKILL)
	for isProgram(a.KeeperPID) || isProgram(a.WorkerPID) {
		time.Sleep(time.Millisecond)
	}
	for _, args := range [][]string{{"snapshot", "db", "x"}, {"clone", "db", "x"}, {"consolidate", "db"}, {"flatten", "db"}, {"delete", "db"}} {
		r.fails(cli.ExitInUse, "keeper of the disk db died", r.on(args...)...)
	}
	r.ok("detach", a.Device)
	r.ok(r.on("snapshot", "db", "x")...)
	r.deleteAll()
}
