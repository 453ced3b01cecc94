package vmdkctl

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// TestPhysicalMap: what lies on the device at the places is the disk, for a chain on ext4 and on XFS; what has no trustworthy places is
// refused.
func TestPhysicalMap(t *testing.T) {
	const size = 24 << 20
	for _, mkfs := range []string{"mkfs.ext4 -q -b 4096", "mkfs.xfs -q -m reflink=0"} {
		t.Run(strings.Fields(mkfs)[0], func(t *testing.T) {
			r := newRig(t)
			must(os.WriteFile(r.path("image"), nil, 0o600))
			must(os.Truncate(r.path("image"), 400<<20))
			must(os.Mkdir(r.path("mnt"), 0o755))
			exe, err := os.Executable()
			if err != nil {
				t.Fatal(err)
			}
			base, top := r.rawOf("base", 3<<20), r.rawOf("top", 1<<20)
			must(os.WriteFile(r.path("base.bin"), base, 0o600))
			must(os.WriteFile(r.path("top.bin"), top, 0o600))
			script := mkfs + ` image >&2 && mount -o loop image mnt && cd mnt && {
				"$1" create disk.vmdk --size 24M --type monolithicSparse && "$1" write disk.vmdk ../base.bin --offset 1M &&
				"$1" snapshot disk.vmdk disk-000001.vmdk && "$1" write disk-000001.vmdk ../top.bin --offset 2560K; } >&2 &&
				"$1" map --physical disk-000001.vmdk -o json && "$1" read disk-000001.vmdk >../content && cd .. && umount mnt`
			cmd := exec.Command("unshare", "-m", "--propagation", "private", "sh", "-c", script, "sh", exe)
			cmd.Env, cmd.Dir = r.env, r.dir
			res := r.finish(cmd)
			if strings.Contains(res.err, "unshare: ") || strings.Contains(res.err, "mount: ") {
				t.Skipf("this test mounts a file system, which is not allowed here: %s", res.err)
			}
			if res.code != 0 {
				t.Fatalf("%+v", res)
			}
			var all []physicalEntry
			if err := json.Unmarshal([]byte(res.out), &all); err != nil {
				t.Fatal(err)
			}
			device, err := os.ReadFile(r.path("image"))
			if err != nil {
				t.Fatal(err)
			}
			got, data := make([]byte, size), int64(0)
			for _, e := range all {
				if !e.Zero {
					copy(got[e.Start:e.Start+e.Length], device[*e.Place:])
					data += e.Length
				}
			}
			want, err := os.ReadFile(r.path("content"))
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("the device does not hold the disk at these places: %v", err)
			}
			if data < 3<<20 || data > 5<<20 || !bytes.Equal(got[2560<<10:][:len(top)], top) {
				t.Errorf("%d bytes of data", data)
			}
		})
	}
	r := newRig(t)
	shm, err := os.MkdirTemp("/dev/shm", "vmdkctl")
	if err != nil {
		t.Skip("no tmpfs at /dev/shm")
	}
	defer os.RemoveAll(shm)
	r.ok("create", shm+"/disk.vmdk", "--size", "1M")
	r.piped([]byte("x"), "write", shm+"/disk.vmdk")
	if res := r.run("map", "--physical", shm+"/disk.vmdk"); res.code == 0 || !strings.Contains(res.err, "file system") {
		t.Errorf("tmpfs: %+v", res)
	}
}
