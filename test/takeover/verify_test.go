package takeover

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/internal/sys"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
)

func hash(t *testing.T, from io.Reader) string {
	t.Helper()
	h := sha256.New()
	if _, err := io.CopyBuffer(struct{ io.Writer }{h}, struct{ io.Reader }{from}, aligned(t)); err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// aligned is a buffer for direct I/O.
func aligned(t *testing.T) []byte {
	t.Helper()
	b, err := sys.AlignedBuffer(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sys.FreeBuffer(b) })
	return b
}

// sum is what the block device shows, past the page cache.
func (r *rig) sum(t *testing.T) string {
	t.Helper()
	f, err := os.OpenFile(r.loop.Path(), os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	return hash(t, f)
}

// verify reads the files of a detached disk, with our engine and with qemu, and compares.
func (d disk) verify(t *testing.T, want string) {
	t.Helper()
	if d.opener == "raw" {
		f, err := os.Open(filepath.Join(d.path, rawName))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if got := hash(t, f); got != want {
			t.Errorf("the file has %s, the device showed %s", got, want)
		}
		return
	}
	dir, err := fsx.OpenRoot(d.path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = dir.Close() }()
	c, err := chain.Open(dir, d.links, chain.Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	for _, l := range c.Links() {
		if l.Unclean() {
			t.Errorf("%s was not closed cleanly", l.Name)
		}
	}
	if got := hash(t, io.NewSectionReader(c, 0, c.Size())); got != want {
		t.Errorf("the chain has %s, the device showed %s", got, want)
	}
	qemu, err := exec.LookPath("qemu-img")
	if err != nil {
		t.Log("qemu-img is not installed (apt-get install qemu-utils): the files were read by our own engine only")
		return
	}
	head := filepath.Join(d.path, d.links[len(d.links)-1].Name)
	raw := filepath.Join(t.TempDir(), "raw")
	if out, err := exec.Command(qemu, "convert", "-O", "raw", head, raw).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img convert: %v\n%s", err, out)
	}
	f, err := os.Open(raw)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if got := hash(t, f); got != want {
		t.Errorf("qemu reads %s, the device showed %s", got, want)
	}
}
