package vmdkctl

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/internal/cli"
	"github.com/vmdk-csi/vmdk-csi/pkg/export/loop"
)

// CanAttach skips where there is no root, loop driver or FUSE.
func canAttach(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("making block devices needs root")
	}
	for _, p := range []string{"/dev/loop-control", "/dev/fuse"} {
		if _, err := os.Stat(p); err != nil {
			t.Skipf("making block devices needs %s: %v", p, err)
		}
	}
}

func (r *rig) attach(args ...string) attachment {
	r.t.Helper()
	var a attachment
	r.json(&a, append([]string{"attach"}, args...)...)
	r.t.Cleanup(func() {
		if _, ok := r.listed(a.ID); ok {
			r.ok("detach", a.ID)
		}
	})
	return a
}

func (r *rig) listed(id string) (attachment, bool) {
	r.t.Helper()
	var all []attachment
	r.json(&all, "list")
	for _, a := range all {
		if a.ID == id {
			return a, true
		}
	}
	return attachment{}, false
}

// Gone fails when the attachment left a device, a process or a file; the log stays.
func (r *rig) gone(a attachment) {
	r.t.Helper()
	if devices, err := loop.FindByName(a.ID); err != nil || len(devices) > 0 {
		r.t.Errorf("%v, %v show %s", devices, err, a.ID)
	}
	for _, pid := range []int{a.KeeperPID, a.WorkerPID} {
		if err := unix.Kill(pid, 0); err == nil && isProgram(pid) {
			r.t.Errorf("process %d of %s is still there", pid, a.ID)
		}
	}
	for _, e := range r.env {
		if run, ok := strings.CutPrefix(e, "VMDKCTL_RUN_DIR="); ok {
			left, err := filepath.Glob(filepath.Join(run, a.ID+"*"))
			if err != nil || len(left) != 1 || filepath.Ext(left[0]) != ".log" {
				r.t.Errorf("left in %s: %v %v", run, left, err)
			}
		}
	}
}

// Kill signals a process of this program; an attachment that is not listed has no number, and 0 would be this test's group.
func kill(t *testing.T, pid int, sig unix.Signal) {
	t.Helper()
	if pid <= 1 {
		t.Fatalf("process %d is none of ours", pid)
	}
	if err := unix.Kill(pid, sig); err != nil {
		t.Fatal(err)
	}
}

// IsProgram says that the process still runs this program; its number may be somebody else's by now.
func isProgram(pid int) bool {
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	self, serr := os.Executable()
	return err == nil && serr == nil && exe == self
}

// WriteDevice writes a pattern through the device, past the page cache of nobody: the device's own cache is synced.
func writeDevice(t *testing.T, device string, at int64, p []byte) {
	t.Helper()
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(p, at); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}

func TestAttachSurvivesItsWorker(t *testing.T) {
	canAttach(t)
	rnd := seeded(t)
	for _, s := range ourTypes {
		t.Run(s, func(t *testing.T) {
			r := newRig(t)
			r.ok("create", "disk.vmdk", "--size", "64M", "--type", s)
			want := make([]byte, 64<<20)
			a := r.attach("disk.vmdk")
			for round := range 3 {
				for range 20 {
					p := bytes.Repeat([]byte{byte(rnd.IntN(256))}, 512*(1+rnd.IntN(300)))
					at := 512 * rnd.Int64N(int64(len(want)-len(p))/512)
					writeDevice(t, a.Device, at, p)
					copy(want[at:], p)
				}
				if round < 2 {
					r.killWorker(a.ID)
				}
			}
			if now, ok := r.listed(a.ID); !ok || now.Restarts != 2 || now.State != "Serving" || now.Size != 64<<20 {
				t.Errorf("list says %+v, %v", now, ok)
			}
			r.ok("chain", "disk.vmdk")
			if res := r.run("check", "disk.vmdk"); res.code != cli.ExitWarned || !strings.Contains(res.out, "is live") {
				t.Errorf("check of an attached disk: %+v", res)
			}
			r.fails(cli.ExitInUse, "attached already", "attach", "disk.vmdk")
			r.fails(cli.ExitInUse, "is open in another process", "convert", "disk.vmdk", "copy.raw")
			last, _ := r.listed(a.ID)
			r.ok("detach", a.Device)
			r.gone(last)
			r.ok("check", "disk.vmdk")
			if err := os.WriteFile(r.path("want.raw"), want, 0o600); err != nil {
				t.Fatal(err)
			}
			r.same("want.raw", "disk.vmdk")
		})
	}
}

// KillWorker kills -9 and waits until another one serves.
func (r *rig) killWorker(id string) {
	r.t.Helper()
	before, ok := r.listed(id)
	if !ok || before.WorkerPID == 0 {
		r.t.Fatalf("no worker: %+v", before)
	}
	kill(r.t, before.WorkerPID, unix.SIGKILL)
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if now, _ := r.listed(id); now.Restarts > before.Restarts && now.State == "Serving" {
			return
		}
		if time.Now().After(deadline) {
			r.t.Fatal("no successor")
		}
	}
}

func TestDetachRefusesWhatIsInUse(t *testing.T) {
	canAttach(t)
	r := newRig(t)
	r.ok("create", "disk.vmdk", "--size", "64M")
	a := r.attach("disk.vmdk")
	r.peer("mkfs.ext4", "-q", a.Device)
	mount := r.path("mnt")
	if err := os.Mkdir(mount, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(a.Device, mount, "ext4", 0, ""); err != nil {
		t.Fatal(err)
	}
	r.fails(cli.ExitInUse, "is mounted at "+mount, "detach", a.Device)
	r.fails(cli.ExitInUse, "is mounted at "+mount, "detach", "disk.vmdk", "--dry-run")
	kill(t, a.KeeperPID, unix.SIGTERM)
	if err := os.WriteFile(filepath.Join(mount, "file"), []byte("content"), 0o600); err != nil {
		t.Errorf("after SIGTERM to the keeper of a mounted disk: %v", err)
	}
	if err := unix.Unmount(mount, 0); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(a.Device)
	if err != nil {
		t.Fatal(err)
	}
	r.fails(cli.ExitInUse, "is open in another process", "detach", a.Device)
	if _, err := f.ReadAt(make([]byte, 4096), 0); err != nil {
		t.Errorf("after a detach that was refused: %v", err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	// The device stays: a refused detach leaves nothing behind that ends it with its last user.
	writeDevice(t, a.Device, 0, []byte("still there"))
	last, _ := r.listed(a.ID)
	if out := r.ok("detach", a.Device, "--dry-run"); !strings.HasPrefix(out, "Would detach") {
		t.Error(out)
	}
	r.ok("detach", "disk.vmdk")
	r.gone(last)
	r.fails(cli.ExitFailed, "is not attached", "detach", a.Device)
}

func TestReadOnlyAttach(t *testing.T) {
	canAttach(t)
	r := newRig(t)
	rnd := seeded(t)
	r.peer("qemu-img", "create", "-q", "-f", "vmdk", "-o", "subformat=twoGbMaxExtentFlat", "base.vmdk", "64M")
	r.scribble(rnd, "base.vmdk", 64<<20, 10)
	r.peer("qemu-img", "create", "-q", "-f", "vmdk", "-b", "base.vmdk", "-F", "vmdk", "head.vmdk")
	r.scribble(rnd, "head.vmdk", 64<<20, 6)
	before := r.peer("sha256sum", "base.vmdk", "head.vmdk")
	a := r.attach("head.vmdk", "--read-only")
	if f, err := os.OpenFile(a.Device, os.O_RDWR, 0); err == nil {
		_, err := f.WriteAt(make([]byte, 512), 0)
		_ = f.Close()
		if err == nil {
			t.Error("a read-only device took a write")
		}
	}
	r.peer("qemu-img", "compare", "-f", "raw", "-F", "vmdk", a.Device, "head.vmdk")
	last, _ := r.listed(a.ID)
	r.ok("detach", a.Device)
	r.gone(last)
	if after := r.peer("sha256sum", "base.vmdk", "head.vmdk"); after != before {
		t.Errorf("a read-only attach changed files\n%s%s", before, after)
	}
}

// Other ways for an attachment to end: SIGTERM to the keeper, losetup -d, kill -9 of the keeper.
func TestOtherEnds(t *testing.T) {
	canAttach(t)
	r := newRig(t)
	r.ok("create", "disk.vmdk", "--size", "16M", "--type", "monolithicSparse")
	for name, end := range map[string]func(a attachment){
		"SIGTERM":    func(a attachment) { kill(t, a.KeeperPID, unix.SIGTERM) },
		"losetup -d": func(a attachment) { r.peer("losetup", "-d", a.Device) },
		"kill -9": func(a attachment) {
			kill(t, a.KeeperPID, unix.SIGKILL)
			for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
				if now, _ := r.listed(a.ID); now.State == keeperDied {
					break
				}
				if time.Now().After(deadline) {
					t.Fatal("list does not see that the keeper is dead")
				}
			}
			r.fails(cli.ExitInUse, "shows this disk", "attach", "disk.vmdk")
			if out := r.ok("detach", a.Device); !strings.Contains(out, "keeper had died") {
				t.Error(out)
			}
		},
	} {
		a := r.attach("disk.vmdk")
		writeDevice(t, a.Device, 4096, []byte(strings.Repeat(name, 512)[:1024]))
		a, _ = r.listed(a.ID)
		end(a)
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			if _, ok := r.listed(a.ID); !ok && !isProgram(a.KeeperPID) {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: the attachment does not end", name)
			}
		}
		r.gone(a)
		r.ok("convert", "disk.vmdk", "copy.raw")
		got, err := os.ReadFile(r.path("copy.raw"))
		if err != nil {
			t.Fatal(err)
		}
		if want := strings.Repeat(name, 512)[:1024]; string(got[4096:4096+1024]) != want {
			t.Errorf("%s: synced content is lost", name)
		}
		if err := os.Remove(r.path("copy.raw")); err != nil {
			t.Fatal(err)
		}
	}
}

func TestVolumes(t *testing.T) {
	canAttach(t)
	r := newRig(t)
	store := []string{"--datastore", r.dir}
	on := func(args ...string) []string { return append(append([]string{}, args...), store...) }
	first := r.ok(on("create", "pvc one", "--size", "32M", "--type", "twoGbMaxExtentSparse")...)
	if again := r.ok(on("create", "pvc one", "--size", "32M", "--type", "twoGbMaxExtentSparse")...); again != first {
		t.Errorf("the second answer %q is not the first %q", again, first)
	}
	r.fails(cli.ExitFailed, "exists with", on("create", "pvc one", "--size", "64M")...)
	r.fails(cli.ExitFailed, "no disk or snapshot with the id or name", on("info", "pvc two")...)
	a := r.attach(on("pvc one")...)
	writeDevice(t, a.Device, 1<<20, []byte("content of the volume"))
	var info linkInfo
	r.json(&info, on("info", "pvc one")...)
	if v := info.Volume; v == nil || v.Released || v.Name != "pvc one" || v.Epoch != 2 {
		t.Errorf("attached: %+v", info.Volume)
	}
	r.fails(cli.ExitInUse, "is attached on host", on("convert", "pvc one", "copy.raw")...)
	a, _ = r.listed(a.ID)
	r.ok(on("detach", "pvc one")...)
	r.gone(a)
	r.json(&info, on("info", a.Volume)...)
	if v := info.Volume; v == nil || !v.Released {
		t.Errorf("detached: %+v", info.Volume)
	}
	head := filepath.Join(r.dir, "volumes", a.Volume, "disk.vmdk")
	for _, name := range []string{head, filepath.Dir(head)} { // by path as well
		r.ok("check", name)
		r.ok("chain", name)
	}
	r.ok("convert", head, "copy.raw")
	r.same(head, "copy.raw")
	// A keeper that died leaves the claim; detach gives it back.
	a = r.attach(on("pvc one")...)
	writeDevice(t, a.Device, 2<<20, []byte("more"))
	a, _ = r.listed(a.ID)
	kill(t, a.KeeperPID, unix.SIGKILL)
	for isProgram(a.KeeperPID) || isProgram(a.WorkerPID) {
		time.Sleep(time.Millisecond)
	}
	r.ok("detach", a.Device)
	r.gone(a)
	r.json(&info, on("info", "pvc one")...)
	if v := info.Volume; v == nil || !v.Released || v.Epoch != 3 {
		t.Errorf("after the keeper's death: %+v", info.Volume)
	}
	r.ok(on("check", "pvc one")...)
	r.damageManifest(filepath.Dir(head))
	r.fails(cli.ExitDamaged, "checksum", on("check", "pvc one")...)
}

// DamageManifest flips a digit in the latest manifest.
func (r *rig) damageManifest(dir string) {
	r.t.Helper()
	all, err := filepath.Glob(filepath.Join(dir, "manifest-*.json"))
	if err != nil || len(all) == 0 {
		r.t.Fatal(all, err)
	}
	for _, name := range all {
		text, err := os.ReadFile(name)
		if err != nil {
			r.t.Fatal(err)
		}
		if !json.Valid(bytes.TrimSpace(text[:bytes.Index(text, []byte("sha256 "))])) {
			r.t.Errorf("%s is no JSON", name)
		}
		if err := os.WriteFile(name, bytes.Replace(text, []byte(`"epoch": `), []byte(`"epoch": 1`), 1), 0o600); err != nil {
			r.t.Fatal(err)
		}
	}
}
