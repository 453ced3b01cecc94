package transport_test

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/hotadd"
	"github.com/vmdk-csi/vmdk-csi/pkg/transport"
)

type broken struct {
	name string
	err  error
}

func (b broken) Name() string { return b.name }
func (b broken) Attach(context.Context, hotadd.Disk) (hotadd.Slot, error) {
	return hotadd.Slot{}, b.err
}
func (b broken) Detach(context.Context, string) error { return nil }

func picker(t *testing.T, err error) *transport.Picker {
	t.Helper()
	bus, berr := hotadd.OpenEmulated(filepath.Join(t.TempDir(), "bus.json"))
	if berr != nil {
		t.Fatal(berr)
	}
	return transport.New(broken{"san", err}, transport.HotAdd(bus))
}

func TestOrder(t *testing.T) {
	p := picker(t, nil)
	for in, want := range map[string]string{"": "hotadd", "hotadd": "hotadd", "san:hotadd": "san hotadd", "hotadd,san": "hotadd san"} {
		got, err := p.Order(in)
		if err != nil || strings.Join(got, " ") != want {
			t.Errorf("%q: %v %v, want %s", in, got, err, want)
		}
	}
	for _, in := range []string{"nbd", "hotadd:hotadd", ":", "hotadd:floppy", "HOTADD"} {
		if _, err := p.Order(in); !errors.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "san, hotadd") {
			t.Errorf("%q: %v, want Invalid naming the allowed ones", in, err)
		}
	}
}

func TestFallsBackAndSaysWhy(t *testing.T) {
	p := picker(t, fault.New(fault.Unavailable, "", "no LUN"))
	c, err := p.Attach(t.Context(), "san:hotadd", hotadd.Disk{ID: "a"})
	if err != nil || c.Name != "hotadd" || len(c.Skipped) != 1 || c.Skipped[0].Name != "san" || !errors.Is(c.Skipped[0].Reason, fault.Unavailable) {
		t.Fatalf("%+v %v", c, err)
	}
	if err := p.Detach(t.Context(), c.Name, "a"); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Attach(t.Context(), "san", hotadd.Disk{ID: "a"}); !errors.Is(err, fault.Unavailable) {
		t.Fatalf("the only transport fails: %v", err)
	}
}

func TestExhaustedEndsTheSearch(t *testing.T) {
	p := picker(t, fault.New(fault.Exhausted, "", "full"))
	if _, err := p.Attach(t.Context(), "san:hotadd", hotadd.Disk{ID: "a"}); !errors.Is(err, fault.Exhausted) {
		t.Fatalf("%v, want Exhausted", err)
	}
}

func TestParseOrder(t *testing.T) {
	for in, want := range map[string]string{"san:hotadd:nbd": "san hotadd nbd", "nbd": "nbd", "nbd,san": "nbd san"} {
		got, err := transport.ParseOrder(in)
		if err != nil || strings.Join(got, " ") != want {
			t.Errorf("%q: %v %v, want %s", in, got, err, want)
		}
	}
	for _, in := range []string{"", ":", "san:san", "fc", "SAN"} {
		if _, err := transport.ParseOrder(in); !errors.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "san, hotadd, nbd") {
			t.Errorf("%q: %v, want Invalid naming the allowed ones", in, err)
		}
	}
}

// Every name may be asked for of a directory; the first that it can do serves, and the others say why not and what to do.
func TestDirectoryRefuses(t *testing.T) {
	bus, err := hotadd.OpenEmulated(filepath.Join(t.TempDir(), "bus.json"))
	if err != nil {
		t.Fatal(err)
	}
	p := transport.New(transport.OfDirectory(bus)...)
	c, err := p.Attach(t.Context(), "nbd:san:hotadd", hotadd.Disk{ID: "a"})
	if err != nil || c.Name != "hotadd" || len(c.Skipped) != 2 {
		t.Fatalf("%+v %v", c, err)
	}
	for _, s := range c.Skipped {
		if f := fault.From(s.Reason); f.Kind != fault.Unsupported || f.Remedy == "" || !strings.Contains(f.Message, "is a directory") {
			t.Errorf("%s: %+v", s.Name, f)
		}
	}
	if _, err := p.Attach(t.Context(), "san:nbd", hotadd.Disk{ID: "b"}); !errors.Is(err, fault.Unsupported) || !strings.Contains(err.Error(), "need a LUN") {
		t.Fatalf("none is left: %v", err)
	}
	if err := p.Detach(t.Context(), "nbd", "a"); err != nil {
		t.Errorf("what was not attached: %v", err)
	}
}
