package chain_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
)

func benchDisk(b *testing.B, p vmdk.CreateParams) *chain.Chain {
	b.Helper()
	d, err := fsx.OpenRoot(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	if _, err := vmdk.Create(context.Background(), d, "disk.vmdk", p); err != nil {
		b.Fatal(err)
	}
	c, err := chain.Open(d, []chain.Ref{{Name: "disk.vmdk"}}, chain.Options{Direct: true, Pending: &chain.MemoryPending{Max: 1 << 16}})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := c.Close(); err != nil {
			b.Error(err)
		}
		if err := d.Close(); err != nil {
			b.Error(err)
		}
	})
	return c
}

// BenchmarkAllocateFlush writes 4 KiB into a new grain and flushes, with 1 and 8 writers.
func BenchmarkAllocateFlush(b *testing.B) {
	for name, parallel := range map[string]int{"1": 1, "8": 8} {
		b.Run("writers="+name, func(b *testing.B) {
			c := benchDisk(b, vmdk.CreateParams{Type: vmdk.TwoGbMaxExtentSparse, Capacity: 64 << 30})
			b.SetParallelism(parallel)
			b.RunParallel(func(pb *testing.PB) {
				r := rand.New(rand.NewPCG(rand.Uint64(), 1))
				buf := make([]byte, 4096)
				for pb.Next() {
					if _, err := c.WriteAt(buf, r.Int64N(c.Size()/4096)*4096); err != nil {
						b.Error(err)
						return
					}
					if err := c.Flush(); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}

// BenchmarkRead reads 4 KiB at random, through the grain tables and, to compare, from a flat disk.
func BenchmarkRead(b *testing.B) {
	for _, t := range []vmdk.Type{vmdk.MonolithicFlat, vmdk.TwoGbMaxExtentSparse} {
		b.Run(string(t), func(b *testing.B) {
			c := benchDisk(b, vmdk.CreateParams{Type: t, Capacity: 256 << 20})
			buf := make([]byte, 1<<20)
			for i := range buf {
				buf[i] = 1
			}
			for off := int64(0); off < c.Size(); off += int64(len(buf)) {
				if _, err := c.WriteAt(buf, off); err != nil {
					b.Fatal(err)
				}
			}
			b.ResetTimer()
			for b.Loop() {
				if _, err := c.ReadAt(buf[:4096], rand.Int64N(c.Size()/4096)*4096); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkSnapshot says how long requests wait, on disks of very different size with as much content. What a guest feels
// must not depend on the size.
func BenchmarkSnapshot(b *testing.B) {
	for _, size := range []int64{1 << 30, 1 << 40} {
		b.Run(fmt.Sprintf("%dGiB", size>>30), func(b *testing.B) {
			c := benchDisk(b, vmdk.CreateParams{Type: vmdk.TwoGbMaxExtentSparse, Capacity: size})
			buf := make([]byte, 65536)
			var waited []time.Duration
			for i := range b.N {
				for j := range int64(64) {
					if _, err := c.WriteAt(buf, j*size/64); err != nil {
						b.Fatal(err)
					}
				}
				stop := make(chan struct{})
				worst := make(chan time.Duration)
				go func() { // a guest that reads all the time
					var most time.Duration
					for p := make([]byte, 512); ; {
						select {
						case <-stop:
							worst <- most
							return
						default:
						}
						begin := time.Now()
						if _, err := c.ReadAt(p, 0); err != nil {
							b.Error(err)
						}
						most = max(most, time.Since(begin))
					}
				}()
				err := c.Snapshot(b.Context(), chain.SnapshotParams{Child: fmt.Sprintf("disk-%06d.vmdk", i+1)})
				close(stop)
				waited = append(waited, <-worst)
				if err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				if len(c.Links()) > 8 { // short chains, or depth is measured
					err = c.Merge(b.Context(), chain.MergeParams{Lower: 0, Direction: chain.Down})
				}
				if err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
			slices.Sort(waited)
			b.ReportMetric(float64(waited[len(waited)/2].Microseconds()), "µs-waited-median")
		})
	}
}
