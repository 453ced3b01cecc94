package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
)

// Place is a directory of its own for one disk, removed by leave.
type place struct {
	path string
	dir  fsx.Dir
}

func (b *bench) place() (*place, error) {
	path, err := os.MkdirTemp(b.dir, "disk-")
	if err != nil {
		return nil, err
	}
	d, err := fsx.OpenRoot(path)
	if err != nil {
		return nil, err
	}
	return &place{path, d}, nil
}

func (p *place) leave() error { return errors.Join(p.dir.Close(), os.RemoveAll(p.path)) }

func (p *place) file(name string) string { return filepath.Join(p.path, name) }

// NewBase makes an empty thin base.
func (p *place) newBase(ctx context.Context, size int64) (chain.Ref, error) {
	_, err := vmdk.Create(ctx, p.dir, "disk.vmdk", vmdk.CreateParams{Capacity: size, Type: vmdk.MonolithicFlat})
	return chain.Ref{Name: "disk.vmdk"}, err
}

// Open opens links as a worker does.
func (p *place) open(refs []chain.Ref) (*chain.Chain, error) {
	return chain.Open(p.dir, refs, chain.Options{Direct: true, Locks: true, Pending: &chain.MemoryPending{Max: 1 << 16}})
}

// Child puts an empty link on top of refs.
func (p *place) child(ctx context.Context, refs []chain.Ref, size int64) ([]chain.Ref, error) {
	parent, err := vmdk.Open(p.dir, refs[len(refs)-1].Name, vmdk.Options{})
	if err != nil {
		return nil, err
	}
	info := parent.Info()
	if err := parent.Close(); err != nil {
		return nil, err
	}
	name := fmt.Sprintf("disk-%06d.vmdk", len(refs))
	_, err = vmdk.Create(ctx, p.dir, name, vmdk.CreateParams{Capacity: size, Type: vmdk.TwoGbMaxExtentSparse,
		Parent: &vmdk.Parent{Hint: info.Name, CID: info.CID, LongContentID: info.LongID}})
	return append(refs, chain.Ref{Name: name}), err
}

const fillChunk = 1 << 20

// Fill writes amount bytes, every second MiB from start on, into the head of refs.
func (p *place) fill(ctx context.Context, refs []chain.Ref, start, amount int64) error {
	c, err := p.open(refs)
	if err != nil {
		return err
	}
	return errors.Join(fillDisk(ctx, c, start, amount), c.Close())
}

func fillDisk(ctx context.Context, w io.WriterAt, start, amount int64) error {
	buf := make([]byte, fillChunk)
	for i := range buf {
		buf[i] = byte(i*i>>7) | 1
	}
	for n := int64(0); n < amount; n += fillChunk {
		if err := ctx.Err(); err != nil {
			return err
		}
		if _, err := w.WriteAt(buf, start+2*n); err != nil {
			return err
		}
	}
	return nil
}

// Cold drops the place's files from the page cache, so that neither peer reads what the other has warmed.
func (p *place) cold() error {
	names, err := os.ReadDir(p.path)
	if err != nil {
		return err
	}
	for _, n := range names {
		f, err := os.Open(p.file(n.Name()))
		if err != nil {
			return err
		}
		err = errors.Join(unix.Fsync(int(f.Fd())), unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED), f.Close())
		if err != nil {
			return err
		}
	}
	return nil
}

// Durable syncs the files whose names begin with prefix: a peer that leaves that to the kernel is timed with it.
func (p *place) durable(prefix string) error {
	names, err := filepath.Glob(p.file(prefix + "*"))
	if err != nil || len(names) == 0 {
		return errors.Join(err, fmt.Errorf("no files %s*", prefix))
	}
	for _, n := range names {
		f, err := os.Open(n)
		if err != nil {
			return err
		}
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// Remove removes the files whose names begin with prefix.
func (p *place) remove(prefix string) error {
	names, err := filepath.Glob(p.file(prefix + "*"))
	for _, n := range names {
		err = errors.Join(err, os.Remove(n))
	}
	return err
}

// QemuImg runs the peer in the place.
func (p *place) qemuImg(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, "qemu-img", args...)
	cmd.Dir = p.path
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("qemu-img %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

// Timed is how long do takes.
func timed(do func() error) (time.Duration, error) {
	begin := time.Now()
	err := do()
	return time.Since(begin), err
}
