package chain_test

import (
	"context"
	"fmt"
	"log"
	"os"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
)

// A disk is written, a snapshot keeps what it was, and a merge makes one link of the two again.
func Example() {
	path, err := os.MkdirTemp("", "vmdk")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(path)
	d, err := fsx.OpenRoot(path)
	if err != nil {
		log.Fatal(err)
	}
	defer d.Close()
	ctx := context.Background()
	if _, err := vmdk.Create(ctx, d, "disk.vmdk", vmdk.CreateParams{Type: vmdk.MonolithicFlat, Capacity: 1 << 20}); err != nil {
		log.Fatal(err)
	}
	c, err := chain.Open(d, []chain.Ref{{Name: "disk.vmdk"}}, chain.Options{})
	if err != nil {
		log.Fatal(err)
	}
	write := func(text string) {
		if _, err := c.WriteAt(append([]byte(text), make([]byte, 512-len(text))...), 0); err != nil {
			log.Fatal(err)
		}
	}
	write("before")
	if err := c.Snapshot(ctx, chain.SnapshotParams{Child: "disk-000001.vmdk"}); err != nil {
		log.Fatal(err)
	}
	write("after")
	for e, err := range c.Map(0, c.Size()) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(e.Start, e.Length, "in link", e.Link)
	}
	if err := c.Merge(ctx, chain.MergeParams{Lower: 0, Direction: chain.Down}); err != nil {
		log.Fatal(err)
	}
	b := make([]byte, 5)
	if _, err := c.ReadAt(b, 0); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s, %d link\n", b, len(c.Links()))
	if err := c.Close(); err != nil {
		log.Fatal(err)
	}
	// Output:
	// 0 65536 in link 1
	// 65536 983040 in link 0
	// after, 1 link
}
