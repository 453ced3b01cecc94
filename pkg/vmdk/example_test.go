package vmdk_test

import (
	"context"
	"fmt"
	"log"
	"os"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
)

// directory is a new directory for an example.
func directory() (fsx.Dir, func()) {
	path, err := os.MkdirTemp("", "vmdk")
	if err != nil {
		log.Fatal(err)
	}
	d, err := fsx.OpenRoot(path)
	if err != nil {
		log.Fatal(err)
	}
	return d, func() {
		_ = d.Close()
		_ = os.RemoveAll(path)
	}
}

// A sparse disk of 1 GiB takes some KiB until something is written.
func ExampleCreate() {
	d, remove := directory()
	defer remove()
	info, err := vmdk.Create(context.Background(), d, "disk.vmdk", vmdk.CreateParams{Type: vmdk.TwoGbMaxExtentSparse, Capacity: 1 << 30})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(info.Type, info.Capacity>>20, "MiB")
	for _, e := range info.Extents {
		fmt.Println(e.Name)
	}
	// Output:
	// twoGbMaxExtentSparse 1024 MiB
	// disk-s001.vmdk
}

// A link tells where each piece of it lies.
func ExampleOpen() {
	d, remove := directory()
	defer remove()
	if _, err := vmdk.Create(context.Background(), d, "disk.vmdk", vmdk.CreateParams{Type: vmdk.MonolithicSparse, Capacity: 1 << 20}); err != nil {
		log.Fatal(err)
	}
	l, err := vmdk.Open(d, "disk.vmdk", vmdk.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer l.Close()
	for _, e := range l.Extents() {
		r, err := e.Run(0, e.Len)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(e.Kind, e.GrainBytes(), "bytes in a grain;", r.Len, "bytes unallocated:", r.State == vmdk.Unallocated)
	}
	// Output:
	// SPARSE 65536 bytes in a grain; 1048576 bytes unallocated: true
}

// Check says what is wrong with a link, where, and what to do about it.
func ExampleCheck() {
	d, remove := directory()
	defer remove()
	ctx := context.Background()
	if _, err := vmdk.Create(ctx, d, "disk.vmdk", vmdk.CreateParams{Type: vmdk.TwoGbMaxExtentSparse, Capacity: 1 << 20}); err != nil {
		log.Fatal(err)
	}
	if err := d.Remove("disk-s001.vmdk"); err != nil {
		log.Fatal(err)
	}
	report, err := vmdk.Check(ctx, d, "disk.vmdk")
	if err != nil {
		log.Fatal(err)
	}
	for _, p := range report.Problems {
		fmt.Println(p)
	}
	// Output:
	// fatal: disk-s001.vmdk: the extent is missing [guest bytes 0..1048575]. Restore the file
}
