//go:build e2e

package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/test/cluster"
)

// TestPods is everything that pods do beside each other; most of it is waiting, so `go test -parallel` says how many at a
// time.
func TestPods(t *testing.T) {
	// Those that wait longest begin first.
	for _, tc := range []struct {
		name string
		test func(*testing.T)
	}{
		{"SharedDatastore", sharedDatastore},
		{"ManySnapshots", manySnapshots},
		{"Full", full},
		{"DamagedFiles", damagedFiles},
		{"AnyOrder", anyOrder},
		{"DetachedSnapshots", detachedSnapshots},
		{"RestoreBesideSource", restoreBesideSource},
		{"GrowthWithSnapshots", growthWithSnapshots},
		{"WorkerDies", workerDies},
		{"OnlineGrowth", onlineGrowth},
		{"FileSystems", fileSystems},
		{"FreezeOfHungFileSystem", freezeOfHungFileSystem},
		{"PreProvisioned", preProvisioned},
		{"BadSnapshots", badSnapshots},
		{"Flattened", flattened},
		{"SnapshotOfFullFileSystem", snapshotOfFullFileSystem},
		{"WrongFileSystem", wrongFileSystem},
		{"PodDeletedWhileStaging", podDeletedWhileStaging},
		{"FullDatastore", fullDatastore},
		{"RawBlock", rawBlock},
		{"TwoPodsOneNode", twoPodsOneNode},
		{"ReadWriteOncePod", readWriteOncePod},
		{"ReadOnlyPublishAndFSGroup", readOnlyPublishAndFSGroup},
		{"TransportOrder", transportOrder},
		{"BadParameters", badParameters},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			tc.test(t)
		})
	}
}

// TestRestarts is what every pod of the cluster would notice.
func TestRestarts(t *testing.T) { restarts(t) }

// TestLUN is disks on a LUN, which nodes reach by themselves or through another. Its parts take hosts and paths away from each other.
func TestLUN(t *testing.T) {
	t.Run("Moves", lunMoves)
	t.Run("Snapshots", lunSnapshots)
	t.Run("Hidden", lunHidden)
	t.Run("ServerDies", lunServerDies)
}

// TestZNothingLeft runs last.
func TestZNothingLeft(t *testing.T) { nothingLeft(t) }

// nothingLeft: no object, file, loop device or mount of the tests before is left.
func nothingLeft(t *testing.T) {
	e := newEnv(t)
	e.wait(goneTimeout, "every VirtualDisk and DiskSnapshot is gone", func() (string, bool) {
		out := e.kubectl("get", "virtualdisks,disksnapshots,volumesnapshotcontents", "-o", "name")
		return out, out == ""
	})
	roots := slices.Collect(maps.Values(sharedRoots()))
	for _, w := range e.workers() {
		roots = append(roots, filepath.Join(cluster.StateDir(), w))
	}
	for _, r := range roots {
		for _, dir := range []string{"volumes", "names"} {
			left, err := os.ReadDir(filepath.Join(r, dir))
			if err != nil && !os.IsNotExist(err) {
				t.Error(err)
			}
			for _, f := range left {
				t.Errorf("left behind: %s", filepath.Join(r, dir, f.Name()))
			}
		}
	}
	if out := e.host(cluster.Vmdkctl(), "lun", "ls", "-R", cluster.LUNFile()); strings.Contains(out, "vd-") {
		t.Errorf("left behind on the LUN: %s", out)
	}
	for _, w := range e.workers() {
		// Other suites of this machine have disks too: a device's file is named after disk and node.
		sum := sha256.Sum256([]byte(w))
		if out := e.host("docker", "exec", w, "sh", "-c", "grep -l 'vd-.*@'$1 /sys/block/loop*/loop/backing_file 2>/dev/null || true",
			"sh", hex.EncodeToString(sum[:4])); out != "" {
			t.Errorf("loop devices on %s: %s", w, out)
		}
		if out := e.host("docker", "exec", w, "sh", "-c", "grep csi.vmdk-csi.io/ /proc/mounts || true"); out != "" {
			t.Errorf("mounts on %s: %s", w, out)
		}
	}
}
