package kmutex_test

import (
	"errors"
	"sync"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/internal/kmutex"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

func TestOneHolderPerKey(t *testing.T) {
	var s kmutex.Set
	unlock, err := s.TryLock("a", "create")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.TryLock("a", "delete"); !errors.Is(err, fault.InProgress) {
		t.Fatalf("second lock of a busy key: %v, want InProgress", err)
	}
	other, err := s.TryLock("b", "create")
	if err != nil {
		t.Fatalf("another key: %v", err)
	}
	other()
	unlock()
	unlock() // a second unlock must not free a later holder
	again, err := s.TryLock("a", "delete")
	if err != nil {
		t.Fatalf("after unlock: %v", err)
	}
	unlock()
	if _, err := s.TryLock("a", "get"); err == nil {
		t.Fatal("a stale unlock freed the key of a later holder")
	}
	again()
}

func TestConcurrentHoldersExclude(t *testing.T) {
	var s kmutex.Set
	var wg sync.WaitGroup
	var inside, won int
	for range 8 {
		wg.Go(func() {
			for range 1000 {
				unlock, err := s.TryLock("k", "op")
				if err != nil {
					continue
				}
				inside++
				if inside != 1 {
					t.Errorf("%d holders", inside)
				}
				won++
				inside--
				unlock()
			}
		})
	}
	wg.Wait()
	if won == 0 {
		t.Fatal("nobody ever held the key")
	}
}
