package chain_test

import (
	"context"
	"math/rand/v2"
	"testing"

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
