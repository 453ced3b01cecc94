package local

import (
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// A datastore that does not answer keeps nobody, is not asked again meanwhile, and is used again when it answers.
func TestBox(t *testing.T) {
	b := &box{patience: 10 * time.Millisecond}
	ok := func() (int, error) { return 7, nil }
	if v, err := within(b, "ds", ok); v != 7 || err != nil {
		t.Fatal(v, err)
	}
	own := errors.New("its own")
	if _, err := within(b, "ds", func() (int, error) { return 0, own }); !errors.Is(err, own) {
		t.Fatal(err)
	}
	release := make(chan struct{})
	var wg sync.WaitGroup
	for range 3 { // at once: each may have begun before the first gave up
		wg.Go(func() {
			if _, err := within(b, "ds", func() (int, error) { <-release; return 0, nil }); !errors.Is(err, fault.Unavailable) {
				t.Errorf("a call that hangs: %v", err)
			}
		})
	}
	wg.Wait()
	asked := false
	if _, err := within(b, "ds", func() (int, error) { asked = true; return 0, nil }); !errors.Is(err, fault.Unavailable) || asked || !b.hangs() {
		t.Errorf("while one hangs: %v, asked: %v", err, asked)
	}
	close(release)
	for deadline := time.Now().Add(10 * time.Second); b.hangs(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the calls do not end")
		}
	}
	if v, err := within(b, "ds", ok); v != 7 || err != nil {
		t.Errorf("afterwards: %d, %v", v, err)
	}
}
