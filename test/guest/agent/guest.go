package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/pkg/driver"
	"github.com/vmdk-csi/vmdk-csi/pkg/hotadd/guest"
	"github.com/vmdk-csi/vmdk-csi/test/guest/call"
)

// Guest is what the test asks for. The methods on volumes are the CSI node service's calls, as the kubelet makes them.
type Guest struct {
	node    *driver.Node
	kernel  guest.Kernel
	running *running
}

// Ready answers.
func (g *Guest) Ready(_ call.Text, r *call.Text) error {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return err
	}
	r.Text = unix.ByteSliceToString(name.Release[:])
	return nil
}

func capability(v call.Volume) *csi.VolumeCapability {
	c := &csi.VolumeCapability{AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER}}
	if v.FSType == "" {
		c.AccessType = &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}}
	} else {
		c.AccessType = &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{FsType: v.FSType}}
	}
	if v.ReadOnly {
		c.AccessMode.Mode = csi.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY
	}
	return c
}

func volumeContext(v call.Volume) map[string]string {
	if v.Partition == "" {
		return nil
	}
	return map[string]string{driver.ParamPartition: v.Partition}
}

// Stage is NodeStageVolume.
func (g *Guest) Stage(v call.Volume, _ *call.Text) error {
	ctx, cancel := bounded(v.Seconds)
	defer cancel()
	_, err := g.node.NodeStageVolume(ctx, &csi.NodeStageVolumeRequest{VolumeId: v.ID, StagingTargetPath: v.Staging(),
		VolumeCapability: capability(v), VolumeContext: volumeContext(v)})
	return err
}

// Publish is NodePublishVolume.
func (g *Guest) Publish(v call.Volume, _ *call.Text) error {
	_, err := g.node.NodePublishVolume(context.Background(), &csi.NodePublishVolumeRequest{VolumeId: v.ID, StagingTargetPath: v.Staging(),
		TargetPath: v.Target(), VolumeCapability: capability(v), VolumeContext: volumeContext(v), Readonly: v.ReadOnly})
	return err
}

// Unpublish is NodeUnpublishVolume.
func (g *Guest) Unpublish(v call.Volume, _ *call.Text) error {
	_, err := g.node.NodeUnpublishVolume(context.Background(), &csi.NodeUnpublishVolumeRequest{VolumeId: v.ID, TargetPath: v.Target()})
	return err
}

// Unstage is NodeUnstageVolume.
func (g *Guest) Unstage(v call.Volume, _ *call.Text) error {
	_, err := g.node.NodeUnstageVolume(context.Background(), &csi.NodeUnstageVolumeRequest{VolumeId: v.ID, StagingTargetPath: v.Staging()})
	return err
}

// Link resolves the stable link of the disk with this serial number.
func (g *Guest) Link(serial call.Text, r *call.Text) (err error) {
	r.Text, err = os.Readlink("/run/vmdk-csi/by-id/wwn-0x" + filepath.Base(serial.Text))
	return err
}

// Disks lists the guest's disks.
func (g *Guest) Disks(_ call.Text, r *call.Disks) (err error) {
	r.Disks, err = g.kernel.Disks()
	return err
}

// Forget makes the guest's kernel forget a disk.
func (g *Guest) Forget(name call.Text, _ *call.Text) error { return g.kernel.Forget(name.Text) }

// Rescan makes the guest's kernel look for disks.
func (g *Guest) Rescan(_ call.Text, _ *call.Text) error { return g.kernel.Rescan(-1) }

// File reads a small file of the guest.
func (g *Guest) File(path call.Text, r *call.Text) error {
	b, err := os.ReadFile(path.Text)
	r.Text = string(b)
	return err
}

// Write writes the pattern and makes it durable.
func (g *Guest) Write(w call.Write, _ *call.Text) error {
	f, err := os.OpenFile(w.Path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, bytes.NewReader(w.Content()))
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = syncDir(filepath.Dir(w.Path)) // the file's name, too
	}
	return err
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Read reads w.Size bytes from the medium, past the page cache, and returns their digest.
func (g *Guest) Read(w call.Write, r *call.Text) error {
	f, err := os.Open(w.Path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		return err
	}
	h := sha256.New()
	if _, err := io.CopyN(h, f, w.Size); err != nil {
		return err
	}
	r.Text = hex.EncodeToString(h.Sum(nil))
	return nil
}
