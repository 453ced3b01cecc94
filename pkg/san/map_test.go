package san_test

import (
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/san"
)

func goodMap() *san.Map {
	id := "0123456789abcdef0123456789abcdef"
	m := &san.Map{Grant: 1, Generation: 7, Volume: "v", Node: "n", Mode: san.ReadWrite, Size: 3<<20 + 512, Lease: time.Minute, MaxIO: 10 * time.Second,
		LUNs:    []san.LUN{{Store: id, Nonce: id, Bytes: 64 << 20}},
		Extents: []san.Extent{{Len: 1 << 20, Place: 4 << 20}, {Off: 1 << 20, Len: 2<<20 + 512, Place: 8 << 20}}}
	m.Digest = m.Sum()
	return m
}

func TestValidate(t *testing.T) {
	if err := goodMap().Validate(); err != nil {
		t.Fatal(err)
	}
	zero := goodMap()
	zero.Mode, zero.Extents[0].Zero = san.ReadOnly, true
	zero.Digest = zero.Sum()
	if err := zero.Validate(); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(m *san.Map){
		"mode": func(m *san.Map) { m.Mode = "wo" }, "size": func(m *san.Map) { m.Size = 100 }, "negative size": func(m *san.Map) { m.Size = -512 },
		"no extents": func(m *san.Map) { m.Extents = nil }, "a gap": func(m *san.Map) { m.Extents[1].Off += 4096 },
		"an overlap": func(m *san.Map) { m.Extents[1].Off -= 4096 }, "short": func(m *san.Map) { m.Extents[1].Len -= 512 },
		"long": func(m *san.Map) { m.Extents[1].Len += 512 }, "not of blocks": func(m *san.Map) { m.Extents[0].Len -= 512; m.Extents[1].Off -= 512 },
		"an odd place": func(m *san.Map) { m.Extents[0].Place += 512 }, "outside the LUN": func(m *san.Map) { m.Extents[1].Place = 62 << 20 },
		"far outside": func(m *san.Map) { m.Extents[1].Place = 1<<62 + 4096<<10 }, "before the LUN": func(m *san.Map) { m.Extents[1].Place = -4096 },
		"a LUN too many": func(m *san.Map) { m.Extents[0].LUN = 1 }, "zeros to write": func(m *san.Map) { m.Extents[0].Zero = true },
		"two at one place": func(m *san.Map) { m.Extents[1].Place = 4<<20 + 4096 }, "no lease": func(m *san.Map) { m.Lease = 0 },
		"a lease shorter than a request": func(m *san.Map) { m.Lease = m.MaxIO }, "no identity": func(m *san.Map) { m.LUNs[0].Nonce = "" },
		"the wrong order": func(m *san.Map) { m.Extents[0], m.Extents[1] = m.Extents[1], m.Extents[0] },
	} {
		m := goodMap()
		spoil(m)
		m.Digest = m.Sum()
		if err := m.Validate(); !errors.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, spoil := range map[string]func(m *san.Map){
		"place": func(m *san.Map) { m.Extents[0].Place += 4096 }, "mode": func(m *san.Map) { m.Mode = san.ReadOnly },
		"LUN": func(m *san.Map) { m.LUNs[0].Store = "f" + m.LUNs[0].Store[1:] }, "digest": func(m *san.Map) { m.Digest = "" },
	} {
		m := goodMap()
		spoil(m)
		if err := m.Validate(); !errors.Is(err, fault.Invalid) {
			t.Errorf("another %s under the old digest: %v", name, err)
		}
	}
}

// FuzzMap: whatever a server sends, a map that is valid answers every place of the disk.
func FuzzMap(f *testing.F) {
	for _, change := range []func(m *san.Map){func(*san.Map) {}, func(m *san.Map) { m.Mode = san.ReadOnly; m.Extents[1].Zero = true }, func(m *san.Map) { m.Extents[0].Len = -1 }} {
		m := goodMap()
		change(m)
		p, err := json.Marshal(m)
		must(f, err)
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		var m san.Map
		if json.Unmarshal(p, &m) != nil {
			return
		}
		m.Digest = m.Sum()
		if m.Validate() != nil {
			return
		}
		at := int64(0)
		for _, x := range m.Extents {
			if x.Off != at || x.Len <= 0 || !x.Zero && (x.Place < 0 || x.Place+x.Len > m.LUNs[x.LUN].Bytes) {
				t.Fatalf("%+v at %d", x, at)
			}
			at += x.Len
		}
		if at != m.Size {
			t.Fatalf("ends at %d of %d", at, m.Size)
		}
	})
}
