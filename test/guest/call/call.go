// Package call is what the test and the agent in its guest say to each other: net/rpc with JSON, one object a line, over two
// virtio-serial ports. On "ctl" the test calls the agent's Guest service; on "hostd" the node plugin's service in the
// agent calls the test's Hostd service, which stands for the hypervisor's side.
package call

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/rand/v2"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/hotadd/guest"
)

// The ports' names, which the guest finds in /sys/class/virtio-ports.
const (
	Control = "ctl"
	Hostd   = "hostd"
)

// Volume is how a volume is staged and published in the guest.
type Volume struct {
	ID        string
	FSType    string // "" for a raw block device
	Partition string // "none", "gpt"
	ReadOnly  bool
	Seconds   int // the call's deadline; 0: none
}

// Staging and Target are the volume's paths in the guest.
func (v Volume) Staging() string { return "/run/kubelet/staging/" + v.ID }

// Target is where the volume is published.
func (v Volume) Target() string { return "/run/kubelet/pods/" + v.ID + "/data" }

// Write asks for Size bytes of Seed's pattern in a file or a block device, made durable.
type Write struct {
	Path string
	Size int64
	Seed uint64
}

// Content is what is written.
func (w Write) Content() []byte {
	var seed [32]byte
	binary.LittleEndian.PutUint64(seed[:], w.Seed)
	b := make([]byte, w.Size)
	_, _ = rand.NewChaCha8(seed).Read(b) // it cannot fail
	return b
}

// Digest is what Guest.Read says of it.
func (w Write) Digest() string { return fmt.Sprintf("%x", sha256.Sum256(w.Content())) }

// Text is one text.
type Text struct{ Text string }

// Disks are the guest's SCSI disks.
type Disks struct{ Disks []guest.Disk }

// Answer is what Hostd says.
type Answer struct {
	Fault       *fault.Fault
	Attachments []host.Attachment
	Want        guest.Want
}

// Command is a run of vmdkctl in the guest, until its device is removed.
type Command struct {
	Args   []string // of vmdkctl
	Device string   // in its answer: the device that it made
	Output string   // in its answer: everything that it printed
	Code   int      // in its answer: the exit code
}
