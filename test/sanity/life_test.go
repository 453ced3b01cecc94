package sanity

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

// envLife is set in the child that runs TestLife's scenarios.
const envLife = "VMDK_CSI_LIFE"

// TestLife takes volumes of every sort through a node's life with real processes: the node plugin and hostd are killed
// under a mounted disk, the disk grows, the volume moves off and on the node; the content stays.
func TestLife(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("not root: mounts and loop devices cannot be made")
	}
	if os.Getenv(envLife) == "" {
		out, err := runChild(t, 5*time.Minute, "^TestLife$", envLife+"=1", envBin+"="+buildPrograms(t))
		t.Logf("%s", summary(out))
		if err != nil || !strings.Contains(out, "--- PASS: TestLife/block") || !strings.Contains(out, "--- PASS: TestLife/copies_block") {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	before := census(t)
	n := startNode(t)
	for _, shape := range []struct {
		name, fs string
		params   map[string]string
	}{
		{"xfs", "xfs", nil},
		{"ext4", "ext4", map[string]string{"diskFormat": "zeroedthick"}},
		{"xfs-gpt", "xfs", map[string]string{"partition": "gpt"}},
		{"ext4-gpt-sparse", "ext4", map[string]string{"partition": "gpt", "diskType": "twoGbMaxExtentSparse"}},
		{"block", "", nil},
	} {
		t.Run(shape.name, func(t *testing.T) { n.life(t, shape.name, shape.fs, shape.params) })
	}
	t.Run("foreign content", n.foreignContent)
	for _, fs := range []string{"xfs", "ext4", "btrfs", ""} {
		t.Run("copies "+cmp.Or(fs, "block"), func(t *testing.T) { n.copies(t, fs) })
	}
	n.end(t)
	for _, left := range before.leaked(t) {
		t.Errorf("left behind in the namespace: %s", left)
	}
}

func summary(out string) string {
	var b strings.Builder
	for line := range strings.Lines(out) {
		if strings.Contains(line, "--- ") || strings.Contains(line, "_test.go:") {
			b.WriteString(line)
		}
	}
	return b.String()
}

// rig is one node: hostd, the node plugin with both services, and a client.
type rig struct {
	dir, store  string
	hostd, node *process
	conn        *grpc.ClientConn
	csi.ControllerClient
	csi.NodeClient
}

func startNode(t *testing.T) *rig {
	t.Helper()
	n := &rig{dir: t.TempDir()}
	n.store = filepath.Join(n.dir, "store")
	if err := os.Mkdir(n.store, 0o700); err != nil {
		t.Fatal(err)
	}
	n.hostd = startHostd(t, n.dir, n.store)
	n.startPlugin(t)
	var err error
	n.conn, err = grpc.NewClient("unix://"+filepath.Join(n.dir, "csi.sock"), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithAuthority("localhost"), grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		t.Fatal(err)
	}
	n.ControllerClient, n.NodeClient = csi.NewControllerClient(n.conn), csi.NewNodeClient(n.conn)
	return n
}

func (n *rig) startPlugin(t *testing.T) {
	t.Helper()
	endpoint := filepath.Join(n.dir, "csi.sock")
	n.node = start(t, "vmdk-csi-node", "--kubernetes=false", "--controller", "--node-name=node-a", "--hostd="+filepath.Join(n.dir, "hostd.sock"),
		"--endpoint=unix://"+endpoint, "--plugin-dir="+filepath.Join(n.dir, "plugin"), "--link-dir="+filepath.Join(n.dir, "by-id"),
		"--kubelet-registration-dir="+n.dir, "--health-addr=127.0.0.1:0", "--v=2")
	listening(t, n.node, endpoint)
}

func (n *rig) end(t *testing.T) {
	t.Helper()
	files, err := filesIn(n.store)
	err = errors.Join(err, n.conn.Close(), n.node.stop(), n.hostd.stop(), emptyDirs(filepath.Join(n.dir, "plugin", "volumes"), filepath.Join(n.dir, "by-id")))
	if err != nil || len(files) > 0 {
		t.Errorf("at the end: %v; files %v", err, files)
	}
}

// volume is one on its way through the node.
type volume struct {
	n               *rig
	t               *testing.T
	cap             *csi.VolumeCapability
	id              string
	context         map[string]string
	staging, target string
}

func (n *rig) volume(t *testing.T, name, fs string, params map[string]string, change ...func(*csi.CreateVolumeRequest)) *volume {
	v := &volume{n: n, t: t, staging: filepath.Join(n.dir, name+"-staging"), target: filepath.Join(n.dir, name+"-pod")}
	v.cap = &csi.VolumeCapability{AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER}}
	if fs == "" {
		v.cap.AccessType = &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}}
	} else {
		v.cap.AccessType = &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{FsType: fs, MountFlags: []string{"noatime"}}}
	}
	req := &csi.CreateVolumeRequest{Name: name, VolumeCapabilities: []*csi.VolumeCapability{v.cap},
		Parameters: params, CapacityRange: &csi.CapacityRange{RequiredBytes: 320 * mib}}
	for _, c := range change {
		c(req)
	}
	r, err := n.CreateVolume(t.Context(), req)
	v.ok(err)
	v.id, v.context = r.GetVolume().GetVolumeId(), r.GetVolume().GetVolumeContext()
	return v
}

func (v *volume) ok(err error) {
	v.t.Helper()
	if err != nil {
		v.t.Fatal(err)
	}
}

func (v *volume) up() {
	v.t.Helper()
	ctx := v.t.Context()
	p, err := v.n.ControllerPublishVolume(ctx, &csi.ControllerPublishVolumeRequest{VolumeId: v.id, NodeId: "node-a", VolumeCapability: v.cap, VolumeContext: v.context})
	v.ok(err)
	v.ok(v.stage(p.GetPublishContext()))
	_, err = v.n.NodePublishVolume(ctx, &csi.NodePublishVolumeRequest{VolumeId: v.id, StagingTargetPath: v.staging, TargetPath: v.target,
		VolumeCapability: v.cap, VolumeContext: v.context, PublishContext: p.GetPublishContext()})
	v.ok(err)
}

func (v *volume) stage(publish map[string]string) error {
	_, err := v.n.NodeStageVolume(v.t.Context(), &csi.NodeStageVolumeRequest{VolumeId: v.id, StagingTargetPath: v.staging,
		VolumeCapability: v.cap, VolumeContext: v.context, PublishContext: publish})
	return err
}

func (v *volume) down() {
	v.t.Helper()
	ctx := v.t.Context()
	_, err := v.n.NodeUnpublishVolume(ctx, &csi.NodeUnpublishVolumeRequest{VolumeId: v.id, TargetPath: v.target})
	v.ok(err)
	_, err = v.n.NodeUnstageVolume(ctx, &csi.NodeUnstageVolumeRequest{VolumeId: v.id, StagingTargetPath: v.staging})
	v.ok(err)
	_, err = v.n.ControllerUnpublishVolume(ctx, &csi.ControllerUnpublishVolumeRequest{VolumeId: v.id, NodeId: "node-a"})
	v.ok(err)
}

// file is where content is written: the published device, or a file in the published file system.
func (v *volume) file() string {
	if v.cap.GetBlock() != nil {
		return v.target
	}
	return filepath.Join(v.target, "content")
}

func (v *volume) write(content []byte) {
	v.t.Helper()
	flags := os.O_WRONLY
	if v.cap.GetBlock() == nil {
		flags |= os.O_CREATE
	}
	f, err := os.OpenFile(v.file(), flags, 0o644)
	v.ok(err)
	_, err = f.WriteAt(content, 0)
	v.ok(errors.Join(err, f.Sync(), f.Close()))
}

func (v *volume) check(when string, content []byte) {
	v.t.Helper()
	f, err := os.Open(v.file())
	v.ok(err)
	defer f.Close()
	// Not from the page cache: what the disk's server answers is what counts.
	_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	got := make([]byte, len(content))
	if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, content) {
		v.t.Fatalf("%s: the content is another (%v)", when, err)
	}
}

func (n *rig) life(t *testing.T, name, fs string, params map[string]string) {
	v := n.volume(t, name, fs, params)
	content := make([]byte, 8*mib)
	for i := range content {
		content[i] = byte(rand.Uint32())
	}
	v.up()
	v.write(content)
	v.check("written", content)

	n.node.kill()
	v.check("while the node plugin is dead", content)
	n.startPlugin(t)
	v.up() // what the kubelet does after a restart
	content[4*mib] ^= 0xff
	v.write(content)

	n.awaitHolder(t)
	n.hostd.kill()
	n.hostd = startHostd(t, n.dir, n.store)
	content[5*mib] ^= 0xff
	v.write(content)
	v.check("after hostd was killed", content)

	v.grow(448*mib, fs)
	v.check("grown", content)
	v.down()
	v.up()
	v.check("staged again", content)
	if fs != "" {
		v.atLeast(350 * mib)
	}
	v.down()
	_, err := n.DeleteVolume(t.Context(), &csi.DeleteVolumeRequest{VolumeId: v.id})
	v.ok(err)
}

// awaitHolder waits until the node plugin has told in its journal of descriptors that it holds what hostd has: it asks
// for the size of the volume through the plugin until hostd answered it. What is waited for is the Holder's next look.
func (n *rig) awaitHolder(t *testing.T) {
	t.Helper()
	await(t, "the node plugin holds the disk", func(context.Context) (bool, error) {
		fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", n.node.cmd.Process.Pid))
		for _, fd := range fds {
			if to, _ := os.Readlink(fd); strings.HasPrefix(to, "/dev/fuse") {
				return true, nil
			}
		}
		return false, err
	})
}

func (v *volume) grow(size int64, fs string) {
	v.t.Helper()
	ctx := v.t.Context()
	_, err := v.n.ControllerExpandVolume(ctx, &csi.ControllerExpandVolumeRequest{VolumeId: v.id, CapacityRange: &csi.CapacityRange{RequiredBytes: size}})
	v.ok(err)
	r, err := v.n.NodeExpandVolume(ctx, &csi.NodeExpandVolumeRequest{VolumeId: v.id, VolumePath: v.target, StagingTargetPath: v.staging,
		CapacityRange: &csi.CapacityRange{RequiredBytes: size}, VolumeCapability: v.cap})
	if fs == "ext4" && len(filesystem(v.t)) > 0 {
		// The kernel forbids it here, and the error says what to do: it grows when it is staged next.
		if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "CAP_SYS_RESOURCE") {
			v.t.Fatalf("growing ext4 without CAP_SYS_RESOURCE: %v", err)
		}
		return
	}
	v.ok(err)
	if r.GetCapacityBytes() != size {
		v.t.Fatalf("grown to %d, want %d", r.GetCapacityBytes(), size)
	}
	if fs != "" {
		v.atLeast(350 * mib)
		return
	}
	stats, err := v.n.NodeGetVolumeStats(ctx, &csi.NodeGetVolumeStatsRequest{VolumeId: v.id, VolumePath: v.target})
	v.ok(err)
	if got := stats.GetUsage()[0].GetTotal(); got != size {
		v.t.Fatalf("the device has %d bytes, want %d", got, size)
	}
}

func (v *volume) atLeast(size int64) {
	v.t.Helper()
	stats, err := v.n.NodeGetVolumeStats(v.t.Context(), &csi.NodeGetVolumeStatsRequest{VolumeId: v.id, VolumePath: v.target})
	v.ok(err)
	if got := stats.GetUsage()[0].GetTotal(); got < size {
		v.t.Fatalf("the file system has %d bytes, want at least %d", got, size)
	}
}

// A disk that holds something is never formatted, and a refused staging leaves nothing.
func (n *rig) foreignContent(t *testing.T) {
	raw := n.volume(t, "foreign", "", nil)
	raw.up()
	raw.write([]byte("not a file system"))
	raw.down()
	fs := *raw
	fs.cap = &csi.VolumeCapability{AccessMode: raw.cap.GetAccessMode(), AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{}}}
	p, err := n.ControllerPublishVolume(t.Context(), &csi.ControllerPublishVolumeRequest{VolumeId: fs.id, NodeId: "node-a", VolumeCapability: fs.cap})
	fs.ok(err)
	if err := fs.stage(p.GetPublishContext()); status.Code(err) != codes.FailedPrecondition {
		t.Fatalf("staging foreign content: %v", err)
	}
	// Nothing of the refused staging is left, so that the claim can be taken back without an unstage.
	_, err = n.ControllerUnpublishVolume(t.Context(), &csi.ControllerUnpublishVolumeRequest{VolumeId: fs.id, NodeId: "node-a"})
	fs.ok(err)
	raw.up()
	raw.check("after a refused staging", []byte("not a file system"))
	raw.down()
	_, err = n.DeleteVolume(t.Context(), &csi.DeleteVolumeRequest{VolumeId: raw.id})
	fs.ok(err)
}
