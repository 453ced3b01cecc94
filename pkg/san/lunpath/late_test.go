package lunpath_test

import (
	"bytes"
	"errors"
	"os"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/iscsi/iscsitest"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/lunpath"
)

// TestHangingTarget: a request to a target that hangs is over after MaxIO, and its command does not come later.
func TestHangingTarget(t *testing.T) {
	target := iscsitest.New(t, size)
	lun, _, err := lunpath.Open(t.Context(), target.URL(), lunpath.Options{ReadWrite: true, Blank: true, MaxIO: 300 * time.Millisecond})
	must(t, err)
	defer lun.Close()
	target.Signal(syscall.SIGSTOP)
	before := time.Now()
	if _, err := lun.WriteAt(bytes.Repeat([]byte{1}, 4096), 4096); err == nil {
		t.Error("a target that is stopped answered")
	}
	if d := time.Since(before); d > 2*time.Second {
		t.Errorf("a request took %v", d)
	}
	target.Signal(syscall.SIGCONT)
	for deadline := time.Now().Add(20 * time.Second); ; {
		if _, err = lun.WriteAt(bytes.Repeat([]byte{2}, 4096), 8192); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the target goes on: %v", err)
		}
	}
	must(t, lun.Datasync())
}

// TestGuard: what a logical unit repeats by itself after its target was started anew is asked for, too.
func TestGuard(t *testing.T) {
	target := iscsitest.New(t, size)
	lun, _, err := lunpath.Open(t.Context(), target.URL(), lunpath.Options{ReadWrite: true, Blank: true})
	must(t, err)
	defer lun.Close()
	var over atomic.Bool
	lun.(interface{ Guard(func() error) }).Guard(func() error {
		if over.Load() {
			return fault.New(fault.Fenced, "", "it is another's")
		}
		return nil
	})
	old := bytes.Repeat([]byte{1}, 4096)
	_, err = lun.WriteAt(old, 4096) // and no sync: it is kept
	must(t, err)
	over.Store(true)
	target.Stop()
	next := bytes.Repeat([]byte{2}, 4096) // what the next owner writes
	f, err := os.OpenFile(target.Image, os.O_RDWR, 0)
	must(t, err)
	_, err = f.WriteAt(next, 4096)
	must(t, err)
	defer f.Close()
	target.Start()
	for deadline := time.Now().Add(20 * time.Second); ; {
		if _, err := lun.ReadAt(make([]byte, 512), 0); errors.Is(err, fault.Fenced) {
			break // it heard of the restart, and was not let through to write again
		}
		if time.Now().After(deadline) {
			t.Fatal("the unit did not hear of its target's restart")
		}
	}
	got := make([]byte, 4096)
	_, err = f.ReadAt(got, 4096)
	if must(t, err); !bytes.Equal(got, next) {
		t.Error("what was kept of the old owner was written over the next one's")
	}
}
