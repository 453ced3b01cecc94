package san

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// Mode is what a map is for.
type Mode string

// The modes.
const (
	ReadOnly  Mode = "ro"
	ReadWrite Mode = "rw"
)

// Unit is what places and offsets in a map are multiples of, in bytes; so are lengths, but for the end of a disk.
const Unit = 4096

const sector = 512

// maxExtents bounds a map: 64 Ki runs are 4 GiB of single grains, and 2 MiB on the wire.
const maxExtents = 1 << 20

// LUN names a LUN of a map, and how a node knows that it has the right one.
type LUN struct {
	Store     string   `json:"store"`           // UUID of the store on it, 32 hex digits
	Nonce     string   `json:"nonce"`           // what its owner wrote into the identity block, 32 hex digits
	IDs       []string `json:"ids,omitempty"`   // VPD page 0x83 designators (naa., eui.), where it has them
	Bytes     int64    `json:"bytes"`           // the part that the store uses
	BlockSize int      `json:"blockSize"`       // bytes, 0: not known
	Key       uint64   `json:"prKey,omitempty"` // with which the node registers; 0: no reservations
}

// Extent is a part of the disk: Len bytes at Off are at Place of LUN number LUN, or are zeros.
type Extent struct {
	Off   int64 `json:"off"`
	Len   int64 `json:"len"`
	LUN   int   `json:"lun"`
	Place int64 `json:"place"`
	Zero  bool  `json:"zero,omitempty"`
}

// Map says where a disk is, to one node, for a while.
type Map struct {
	Grant      uint64        `json:"grant"`
	Generation uint64        `json:"generation"`
	Volume     string        `json:"volume"`
	Snapshot   string        `json:"snapshot,omitempty"`
	Node       string        `json:"node"`
	Mode       Mode          `json:"mode"`
	Size       int64         `json:"size"` // bytes of the disk
	Lease      time.Duration `json:"lease"`
	MaxIO      time.Duration `json:"maxIO"` // the longest that one request may take
	LUNs       []LUN         `json:"luns"`
	Extents    []Extent      `json:"extents"`
	Digest     string        `json:"digest"` // of everything that decides where bytes go
}

// Sum computes the digest.
func (m *Map) Sum() string {
	h := sha256.New()
	text := func(s string) {
		_ = binary.Write(h, binary.LittleEndian, uint64(len(s)))
		_, _ = h.Write([]byte(s)) // never fails (hash.Hash)
	}
	text(string(m.Mode))
	_ = binary.Write(h, binary.LittleEndian, m.Size)
	_ = binary.Write(h, binary.LittleEndian, uint64(len(m.LUNs)))
	for _, l := range m.LUNs {
		text(l.Store)
		_ = binary.Write(h, binary.LittleEndian, l.Bytes)
	}
	var p [33]byte
	for _, x := range m.Extents {
		binary.LittleEndian.PutUint64(p[0:], uint64(x.Off))
		binary.LittleEndian.PutUint64(p[8:], uint64(x.Len))
		binary.LittleEndian.PutUint64(p[16:], uint64(x.LUN))
		binary.LittleEndian.PutUint64(p[24:], uint64(x.Place))
		p[32] = 0
		if x.Zero {
			p[32] = 1
		}
		_, _ = h.Write(p[:])
	}
	return hex.EncodeToString(h.Sum(nil))
}

// Validate checks all that a node must not take on trust. Its failures are fault.Invalid.
func (m *Map) Validate() error {
	bad := func(format string, args ...any) error {
		return fault.New(fault.Invalid, "Use another transport, and report it: the metadata server sent a wrong map.", "block map: "+format, args...)
	}
	switch {
	case m.Mode != ReadOnly && m.Mode != ReadWrite:
		return bad("mode %q", m.Mode)
	case m.Size <= 0 || m.Size%sector != 0 || m.Size > 1<<56:
		return bad("a disk of %d bytes", m.Size)
	case len(m.Extents) == 0 || len(m.Extents) > maxExtents || len(m.LUNs) > 64:
		return bad("%d extents on %d LUNs", len(m.Extents), len(m.LUNs))
	case m.MaxIO <= 0 || m.MaxIO > m.Lease/2 || m.Lease > 24*time.Hour:
		return bad("a lease of %s with requests of %s", m.Lease, m.MaxIO)
	case m.Digest != m.Sum():
		return bad("the digest is not that of its content")
	}
	for i, l := range m.LUNs {
		if l.Bytes <= 0 || len(l.Store) != 32 || len(l.Nonce) != 32 {
			return bad("LUN %d has %d bytes and identity %.40q %.40q", i, l.Bytes, l.Store, l.Nonce)
		}
	}
	at := int64(0)
	for i, x := range m.Extents {
		last := i == len(m.Extents)-1
		switch {
		case x.Off != at || x.Len <= 0 || x.Len > m.Size-at:
			return bad("extent %d is [%d, +%d), the one before it ends at %d, the disk at %d", i, x.Off, x.Len, at, m.Size)
		case x.Len%Unit != 0 && !(last && x.Len%sector == 0):
			return bad("extent %d has %d bytes", i, x.Len)
		case x.Zero && m.Mode == ReadWrite:
			return bad("extent %d cannot be written", i)
		case !x.Zero && (x.LUN < 0 || x.LUN >= len(m.LUNs)):
			return bad("extent %d is on LUN %d of %d", i, x.LUN, len(m.LUNs))
		case !x.Zero && (x.Place < 0 || x.Place%Unit != 0 || x.Place > m.LUNs[x.LUN].Bytes-x.Len):
			return bad("extent %d is at %d of a LUN of %d bytes", i, x.Place, m.LUNs[x.LUN].Bytes)
		}
		at += x.Len
	}
	if at != m.Size {
		return bad("it ends at %d, the disk at %d", at, m.Size)
	}
	if m.Mode == ReadWrite {
		return m.apart(bad)
	}
	return nil
}
