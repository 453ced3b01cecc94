package vmdk

import (
	"context"
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx/sim"
)

// TestRewrite: a content ID whose sync failed is read by the next process and synced by nobody. What Rewrite has written
// survives a power failure in every state of the medium.
func TestRewrite(t *testing.T) {
	for _, p := range []CreateParams{{Type: MonolithicFlat, Capacity: 1 << 20}, {Type: MonolithicSparse, Capacity: 1 << 20}} {
		fs := sim.New(sim.Options{})
		d := fs.Root()
		if _, err := Create(context.Background(), d, "disk.vmdk", p); err != nil {
			t.Fatal(err)
		}
		open := func() *Link {
			t.Helper()
			l, err := Open(d, "disk.vmdk", Options{ReadWrite: true})
			if err != nil {
				t.Fatal(err)
			}
			return l
		}
		cid := func(l *Link) CID {
			c := l.desc.Load().CID()
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			return c
		}
		old := cid(open())
		first := open()
		fs.Record()
		for n := 0; ; n++ { // up to the sync that is not followed by anything
			fs.FailAt(fs.Ops()+n, unix.EIO)
			err := first.Begin()
			fs.Heal()
			if err == nil {
				t.Fatalf("%s: no failure leaves a new content ID", p.Type)
			}
			if err := first.Close(); err != nil {
				t.Fatal(err)
			}
			if cid(open()) != old {
				break
			}
			first = open()
		}
		l := open()
		if err := errors.Join(l.Rewrite(), l.Rewrite()); err != nil { // it may be repeated
			t.Fatal(err)
		}
		want := cid(l)
		done := fs.Position()
		if err := writeFile(d, "later", nil); err != nil { // the power fails here
			t.Fatal(err)
		}
		cuts := 0
		for seed := range int64(16) { // it is up to chance what becomes of a write whose sync failed
			for cut := range fs.CrashesFrom(done, 4, seed) {
				cuts++
				l, err := Open(cut.Root(), "disk.vmdk", Options{})
				if err != nil {
					t.Fatal(err)
				}
				if got := cid(l); got != want {
					t.Fatalf("%s, %s: content ID %s, want %s", p.Type, cut.Cut(), got, want)
				}
			}
		}
		if cuts == 0 {
			t.Fatal("no power failure was tried")
		}
	}
}
