package fsxtest

import (
	"errors"
	"fmt"
	"io"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

const mib = 1 << 20

func checkAllocate(d fsx.Dir) error {
	f, err := create(d, "f", pattern(100, 1))
	if err != nil {
		return err
	}
	defer f.Close()
	err = f.Allocate(0, mib)
	if errors.Is(err, fault.Unsupported) {
		return nil
	}
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Allocated < mib {
		return fmt.Errorf("%d bytes allocated after Allocate of %d", info.Allocated, mib)
	}
	return all(
		func() error { return contains(f, append(pattern(100, 1), make([]byte, mib-100)...)) },
		func() error { return wants("negative", f.Allocate(-1, 10), fault.Invalid) },
		func() error { return wants("empty", f.Allocate(2*mib, 0), nil) },
		func() error { return f.Allocate(0, 4096) }, // inside: the size stays
		func() error { return contains(f, append(pattern(100, 1), make([]byte, mib-100)...)) },
	)
}

func checkPunch(d fsx.Dir) error {
	f, err := create(d, "f", pattern(mib, 1))
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Datasync(); err != nil {
		return err
	}
	if err := f.Punch(0, 512); errors.Is(err, fault.Unsupported) {
		return contains(f, pattern(mib, 1)) // a file system that cannot: nothing may have changed
	}
	if err := clears(f, f.Punch, pattern(mib, 1)); err != nil {
		return err
	}
	before, err := f.Stat()
	if err != nil {
		return err
	}
	if err := f.Punch(0, mib); err != nil {
		return err
	}
	after, err := f.Stat()
	if err != nil {
		return err
	}
	if after.Allocated > before.Allocated {
		return fmt.Errorf("Punch of all: allocated %d before, %d after", before.Allocated, after.Allocated)
	}
	return contains(f, make([]byte, mib))
}

func checkZero(d fsx.Dir) error {
	f, err := create(d, "f", pattern(mib, 1))
	if err != nil {
		return err
	}
	defer f.Close()
	return clears(f, f.Zero, pattern(mib, 1))
}

// clears checks that call zeroes exactly the range, whatever its alignment, and never grows the file.
func clears(f fsx.File, call func(off, n int64) error, want []byte) error {
	for _, r := range []struct{ off, n int64 }{
		{0, 512}, {4096, 4096}, {10_000, 1}, {20_000, 10_000}, {65_536, 131_072}, {mib - 100, 5000}, {2 * mib, 4096}, {7, 0},
	} {
		if err := call(r.off, r.n); err != nil {
			return fmt.Errorf("range %+v: %w", r, err)
		}
		if r.off < int64(len(want)) {
			clear(want[r.off:min(int64(len(want)), r.off+r.n)])
		}
		if err := contains(f, want); err != nil {
			return fmt.Errorf("after range %+v: %w", r, err)
		}
	}
	return wants("negative length", call(0, -1), fault.Invalid)
}

// checkSeek: holes may be reported as data, data never as a hole.
func checkSeek(d fsx.Dir) error {
	f, err := d.Open("f", fsx.ReadWrite|fsx.Create)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(4 * mib); err != nil {
		return err
	}
	at := []int64{mib, 3*mib + 123}
	for _, off := range at {
		if _, err := f.WriteAt(pattern(100, 9), off); err != nil {
			return err
		}
	}
	covered := func(off int64) (bool, error) {
		for pos := int64(0); ; {
			start, end, err := f.SeekData(pos)
			if errors.Is(err, io.EOF) {
				return false, nil
			}
			if err != nil {
				return false, err
			}
			if start < pos || end <= start || end > 4*mib {
				return false, fmt.Errorf("SeekData(%d) gives [%d, %d)", pos, start, end)
			}
			if off >= start && off+100 <= end {
				return true, nil
			}
			pos = end
		}
	}
	for _, off := range at {
		if ok, err := covered(off); err != nil || !ok {
			return fmt.Errorf("data at %d is reported as a hole (%v)", off, err)
		}
	}
	_, _, end := f.SeekData(4 * mib)
	_, _, negative := f.SeekData(-1)
	return all(
		func() error { return wants("at the end", end, io.EOF) },
		func() error { return wants("negative", negative, fault.Invalid) },
	)
}

func checkClone(d fsx.Dir) error {
	content := make([]byte, mib)
	copy(content[70_000:], pattern(200_000, 5))
	src, err := create(d, "src", content[:1])
	if err != nil {
		return err
	}
	defer src.Close()
	if err := src.Truncate(mib); err != nil {
		return err
	}
	if _, err := src.WriteAt(content[70_000:270_000], 70_000); err != nil {
		return err
	}
	for i, r := range []struct{ from, to, n int64 }{{0, 0, mib}, {4096, 65536, 131072}, {1, 3, 100_001}, {mib - 5, 10, 5}, {3, 3, 0}} {
		want := pattern(2000, 77)
		dst, err := create(d, fmt.Sprint("dst", i), want)
		if err != nil {
			return err
		}
		defer dst.Close()
		if err := dst.Clone(src, r.from, r.to, r.n); err != nil {
			return fmt.Errorf("clone %+v: %w", r, err)
		}
		if r.n > 0 && int64(len(want)) < r.to+r.n {
			want = append(want, make([]byte, r.to+r.n-int64(len(want)))...)
		}
		copy(want[r.to:], content[r.from:r.from+r.n])
		if err := contains(dst, want); err != nil {
			return fmt.Errorf("clone %+v: %w", r, err)
		}
	}
	dst, err := create(d, "dst", nil)
	if err != nil {
		return err
	}
	defer dst.Close()
	return wants("clone from beyond the source", dst.Clone(src, mib-1, 0, 2), fault.OutOfRange)
}
