package store_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/store"
)

func benchLUN(b *testing.B) fsx.File {
	path := filepath.Join(b.TempDir(), "lun")
	must(b, os.WriteFile(path, nil, 0o600), os.Truncate(path, 512<<20))
	lun, err := fsx.OpenDevice(path, fsx.ReadWrite|fsx.Direct)
	must(b, err)
	b.Cleanup(func() { lun.Close() })
	return lun
}

// BenchmarkRandom is random 4 KiB requests of 32 callers: on the LUN itself, and on a file of a store on it.
func BenchmarkRandom(b *testing.B) {
	const size = 256 << 20
	raw := benchLUN(b)
	must(b, raw.Zero(0, size))
	lun := benchLUN(b)
	_, err := store.Format(lun, store.FormatOptions{})
	must(b, err)
	s, err := store.Open(lun, store.Options{})
	must(b, err)
	f, err := s.Root().Open("f", fsx.ReadWrite|fsx.Create)
	must(b, err)
	defer f.Close()
	must(b, f.Allocate(0, size), f.Datasync())
	for _, x := range []struct {
		name string
		f    fsx.File
	}{{"lun", raw}, {"store", f}} {
		for at := int64(0); at < size; at += 1 << 20 { // no request meets what was never written
			_, err := x.f.WriteAt(fsx.AlignedBuffer(1<<20), at)
			must(b, err)
		}
	}
	for _, op := range []string{"read", "write"} {
		for _, x := range []struct {
			name string
			f    fsx.File
		}{{"lun", raw}, {"store", f}, {"lun", raw}, {"store", f}} {
			b.Run(op+"/"+x.name, func(b *testing.B) {
				b.SetBytes(4096)
				var wg sync.WaitGroup
				for c := range 32 {
					wg.Go(func() {
						rng, p := rand.New(rand.NewPCG(1, uint64(c))), fsx.AlignedBuffer(4096)
						for i := c; i < b.N; i += 32 {
							off := rng.Int64N(size/4096) * 4096
							var err error
							if op == "read" {
								_, err = x.f.ReadAt(p, off)
							} else {
								_, err = x.f.WriteAt(p, off)
							}
							if err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				wg.Wait()
			})
		}
	}
}

// BenchmarkCommit is the sync of one new name, beside so many files of 100 extents.
func BenchmarkCommit(b *testing.B) {
	for _, files := range []int{10, 1000} {
		b.Run(fmt.Sprint(files), func(b *testing.B) {
			lun := benchLUN(b)
			_, err := store.Format(lun, store.FormatOptions{ExtentSize: 4096})
			must(b, err)
			s, err := store.Open(lun, store.Options{})
			must(b, err)
			for i := range files {
				f, err := s.Root().Open(fmt.Sprint("f", i), fsx.ReadWrite|fsx.Create)
				must(b, err)
				must(b, f.Truncate(40960), f.Allocate(8192, 100), f.Allocate(20000, 5), f.Close())
			}
			b.ResetTimer()
			for i := range b.N {
				must(b, s.Root().Mkdir(fmt.Sprint("d", i)), s.Root().Sync())
			}
			b.ReportMetric(float64(s.Info().Catalogue), "catalogue-bytes")
		})
	}
}
