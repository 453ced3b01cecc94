package hotadd_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/hotadd"
	"github.com/vmdk-csi/vmdk-csi/pkg/hotadd/hotaddtest"
)

func TestEmulatedConforms(t *testing.T) {
	hotaddtest.Run(t, func(t *testing.T) (hotadd.Bus, func() hotadd.Bus) {
		path := filepath.Join(t.TempDir(), "bus.json")
		open := func() hotadd.Bus {
			b, err := hotadd.OpenEmulated(path)
			if err != nil {
				t.Fatal(err)
			}
			return b
		}
		return open(), open
	})
}

func TestDamagedStateIsRefused(t *testing.T) {
	for name, text := range map[string]string{
		"no JSON":        `[{`,
		"reserved unit":  `[{"slot":{"controller":0,"unit":7},"disk":{"id":"a"}}]`,
		"two disks":      `[{"slot":{"controller":0,"unit":1},"disk":{"id":"a"}},{"slot":{"controller":0,"unit":1},"disk":{"id":"b"}}]`,
		"one disk twice": `[{"slot":{"controller":0,"unit":1},"disk":{"id":"a"}},{"slot":{"controller":0,"unit":2},"disk":{"id":"a"}}]`,
		"no id":          `[{"slot":{"controller":0,"unit":1},"disk":{}}]`,
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "bus.json")
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := hotadd.OpenEmulated(path); !errors.Is(err, fault.Damaged) {
				t.Fatalf("%v, want Damaged", err)
			}
		})
	}
}

func TestUnwritableStateGivesNoSlot(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	b, err := hotadd.OpenEmulated(filepath.Join(dir, "bus.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Attach(t.Context(), hotadd.Disk{ID: "a"}); err == nil {
		t.Fatal("a slot was given that the next process does not know")
	}
}
