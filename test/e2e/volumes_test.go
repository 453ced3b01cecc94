//go:build e2e

package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// writeAndSum writes n MiB of random bytes to /data/blob, makes them durable and prints their SHA-256.
func writeAndSum(mib int) string {
	return fmt.Sprintf("dd if=/dev/urandom of=/data/blob bs=1M count=%d conv=fsync 2>/dev/null; sha256sum </data/blob | cut -d' ' -f1", mib)
}

const readSum = "sha256sum </data/blob | cut -d' ' -f1"

// fileSystems writes in one pod, reads in a second, and reads the file once more out of what qemu-img makes of the
// detached disk.
func fileSystems(t *testing.T) {
	for _, tc := range []struct {
		class, fstype string
		offset        int64 // of the file system on the disk, bytes
		diskType      string
	}{
		{"e2e-ext4", "ext4", 0, "monolithicFlat"},
		{"e2e-xfs", "xfs", 0, "monolithicFlat"},
		{"e2e-sparse", "xfs", 0, "twoGbMaxExtentSparse"},
		{"e2e-eager", "ext4", 0, "monolithicFlat"},
		{"e2e-btrfs", "btrfs", 0, "monolithicFlat"},
		{"e2e-gpt", "xfs", 1 << 20, "monolithicFlat"},
	} {
		t.Run(tc.class, func(t *testing.T) {
			t.Parallel()
			e := newEnv(t)
			e.claim(claim{Name: "c", Class: tc.class, Size: "320Mi"})
			want := strings.TrimSpace(e.runPod(pod{Name: "writer", Claim: "c", Script: writeAndSum(16)}))
			if got := strings.TrimSpace(e.runPod(pod{Name: "reader", Claim: "c", Script: readSum + "; grep ' /data ' /proc/mounts"})); !strings.HasPrefix(got, want) ||
				!strings.Contains(got, " "+tc.fstype+" ") {
				t.Errorf("second pod reads %q, the first wrote %q on %s", got, want, tc.fstype)
			} else if tc.class == "e2e-xfs" && !strings.Contains(got, "noatime") {
				t.Errorf("mount options of the class are not used: %s", got)
			}
			d := e.diskOf("c")
			raw := e.raw(d)
			if desc := string(mustRead(t, filepath.Join(e.files(d), "disk.vmdk"))); !strings.Contains(desc, `createType="`+tc.diskType+`"`) {
				t.Errorf("descriptor is not %s:\n%s", tc.diskType, desc)
			}
			if got := e.sumInImage(raw, tc.fstype, tc.offset, "blob"); got != want {
				t.Errorf("through qemu-img: %s, the pod wrote %s", got, want)
			}
		})
	}
}

// sumInImage mounts a raw image read-only on this machine and sums a file in it.
func (e *env) sumInImage(raw, fstype string, offset int64, name string) string {
	e.t.Helper()
	dir := e.t.TempDir()
	own := map[string]string{"ext4": ",noload", "xfs": ",norecovery,nouuid"}[fstype]
	opts := "ro,loop" + own + ",offset=" + strconv.FormatInt(offset, 10)
	// A private mount namespace: nothing stays when the shell ends.
	out := e.host("unshare", "-m", "--propagation", "private", "sh", "-ec",
		fmt.Sprintf("mount -t %s -o %s %s %s && sha256sum < %s/%s", fstype, opts, raw, dir, dir, name))
	return strings.Fields(out)[0]
}

func rawBlock(t *testing.T) {
	e := newEnv(t)
	e.claim(claim{Name: "c", Class: "e2e-sparse", Size: "64Mi", Block: true})
	e.runPod(pod{Name: "writer", Claim: "c", Block: true, Script: "dd if=/dev/urandom of=/tmp/b bs=1M count=8 2>/dev/null; dd if=/tmp/b of=/dev/disk bs=1M seek=3 conv=fsync,notrunc 2>/dev/null"})
	want := strings.Fields(e.runPod(pod{Name: "reader", Claim: "c", Block: true, Script: "dd if=/dev/disk bs=1M skip=3 count=8 2>/dev/null | sha256sum"}))[0]
	b := mustRead(t, e.raw(e.diskOf("c")))
	if len(b) != 64<<20 {
		t.Fatalf("qemu-img reads %d bytes", len(b))
	}
	sum := sha256.Sum256(b[3<<20 : 11<<20])
	if got := hex.EncodeToString(sum[:]); got != want {
		t.Errorf("through qemu-img: %s, the pod read %s", got, want)
	}
	for i, c := range b[:3<<20] {
		if c != 0 {
			t.Fatalf("byte %d was never written and is %#x", i, c)
		}
	}
}

func twoPodsOneNode(t *testing.T) {
	e := newEnv(t)
	e.claim(claim{Name: "c", Class: "e2e-xfs"})
	e.pod(pod{Name: "a", Claim: "c"})
	e.running("a")
	e.pod(pod{Name: "b", Claim: "c"})
	e.running("b")
	e.exec("a", "echo from-a >/data/f && sync -f /data/f || true")
	if got := e.exec("b", "cat /data/f"); got != "from-a" {
		t.Errorf("b reads %q", got)
	}
	e.deletePod("a")
	if got := e.exec("b", "echo more >>/data/f; cat /data/f"); got != "from-a\nmore" {
		t.Errorf("after a went, b reads %q", got)
	}
}

func readWriteOncePod(t *testing.T) {
	e := newEnv(t)
	e.claim(claim{Name: "c", Class: "e2e-xfs", Mode: "ReadWriteOncePod"})
	e.pod(pod{Name: "a", Claim: "c"})
	e.running("a")
	e.pod(pod{Name: "b", Claim: "c"})
	e.eventually("Pod", "b", "FailedScheduling", "ReadWriteOncePod")
	e.deletePod("a")
	e.running("b")
}

func readOnlyPublishAndFSGroup(t *testing.T) {
	e := newEnv(t)
	e.claim(claim{Name: "c", Class: "e2e-ext4"})
	out := e.runPod(pod{Name: "writer", Claim: "c", FSGroup: 2345, User: 1234,
		Script: "echo x >/data/f; stat -c '%u:%g' /data/f; stat -c '%g' /data"})
	if got := strings.Fields(out); len(got) != 2 || got[0] != "1234:2345" || got[1] != "2345" {
		t.Errorf("fsGroup: got %q", out)
	}
	out = e.runPod(pod{Name: "reader", Claim: "c", ReadOnly: true, Script: "cat /data/f; if (echo y >/data/f) 2>/dev/null; then echo WRITABLE; fi"})
	if strings.TrimSpace(out) != "x" {
		t.Errorf("read-only publish: %q", out)
	}
}

func onlineGrowth(t *testing.T) {
	for _, class := range []string{"e2e-xfs", "e2e-sparse", "e2e-gpt", "e2e-btrfs", "e2e-ext4"} {
		t.Run(class, func(t *testing.T) {
			t.Parallel()
			if class == "e2e-ext4" && !haveSysResource(t) {
				t.Skip("online resize2fs needs CAP_SYS_RESOURCE (EXT4_IOC_RESIZE_FS), which root lacks on this machine")
			}
			e := newEnv(t)
			e.claim(claim{Name: "c", Class: class, Size: "320Mi"})
			e.pod(pod{Name: "p", Claim: "c"})
			e.running("p")
			want := e.exec("p", writeAndSum(8))
			before := e.kib("p", 2)
			e.in("patch", "pvc", "c", "-p", `{"spec":{"resources":{"requests":{"storage":"640Mi"}}}}`)
			e.podSees("p", "640Mi", before+250*1024)
			if got := e.exec("p", readSum); got != want {
				t.Errorf("content changed: %s, was %s", got, want)
			}
			e.deletePod("p")
			d := e.diskOf("c")
			info, err := os.Stat(e.raw(d))
			if err != nil || info.Size() != 640<<20 {
				t.Errorf("qemu-img reads %v (%v), want 640 MiB", info, err)
			}
		})
	}
}

// haveSysResource reads the bounding set (capability 24, linux/capability.h).
func haveSysResource(t *testing.T) bool {
	for _, l := range strings.Split(string(mustRead(t, "/proc/self/status")), "\n") {
		if v, ok := strings.CutPrefix(l, "CapBnd:\t"); ok {
			n, err := strconv.ParseUint(strings.TrimSpace(v), 16, 64)
			return err == nil && n&(1<<24) != 0
		}
	}
	return false
}
