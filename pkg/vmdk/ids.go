package vmdk

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// CID is the 32-bit content ID of a link. It binds a child to the content its parent had when the child was made.
type CID uint32

// Content IDs with a meaning of their own.
const (
	NoParent     CID = 0xffffffff // parentCID of a base link
	NeverWritten CID = 0xfffffffe // a disk that was created and never written
)

func (c CID) String() string { return fmt.Sprintf("%08x", uint32(c)) }

// Weak tells that many disks share this value, so equality proves little: never written, or the 0 that some versions
// of vmware-vdiskmanager leave.
func (c CID) Weak() bool { return c == NeverWritten || c == 0 }

func parseCID(s string) (CID, error) {
	v, err := strconv.ParseUint(s, 16, 32)
	if err != nil {
		return 0, fault.New(fault.Damaged, "", "content ID %q is not 1 to 8 hexadecimal digits", clip(s))
	}
	return CID(v), nil
}

// NewCID draws a content ID that differs from old and has no meaning of its own.
func NewCID(old CID) CID {
	for {
		c := CID(binary.LittleEndian.Uint32(random(4)))
		if c != old && c != 0 && c != NoParent && c != NeverWritten {
			return c
		}
	}
}

// newLongContentID draws the 128-bit content ID whose low 32 bits are c.
func newLongContentID(c CID) string {
	return hex.EncodeToString(random(12)) + c.String()
}

// UUID is the identity of a disk (ddb.uuid): an NAA 6 identifier with VMware's OUI, which a guest sees as the SCSI
// device's world wide name.
type UUID [16]byte

// NewUUID draws an identity. Its first 28 bits are always 60 00 C2 9.
func NewUUID() UUID {
	var u UUID
	copy(u[:], random(16))
	u[0], u[1], u[2], u[3] = 0x60, 0x00, 0xc2, 0x90|u[3]&0x0f
	return u
}

// IsZero tells that no identity is set.
func (u UUID) IsZero() bool { return u == UUID{} }

// String is VMware's form: "60 00 C2 9a 1d 7b 49 44-dc 53 e6 d3 e5 89 7b 0d".
func (u UUID) String() string {
	h := make([]string, 16)
	for i, b := range u {
		h[i] = fmt.Sprintf("%02x", b)
	}
	if u[2] == 0xc2 {
		h[2] = "C2"
	}
	return strings.Join(h[:8], " ") + "-" + strings.Join(h[8:], " ")
}

// Hex is 32 lower-case digits: the tail of /dev/disk/by-id/wwn-0x....
func (u UUID) Hex() string { return hex.EncodeToString(u[:]) }

// ParseUUID reads VMware's form or 32 hexadecimal digits, in any case, with blanks and hyphens anywhere.
func ParseUUID(s string) (UUID, error) {
	var u UUID
	b, err := hex.DecodeString(strings.NewReplacer(" ", "", "-", "").Replace(s))
	if err != nil || len(b) != 16 {
		return u, fault.New(fault.Invalid, "write 16 bytes as two hexadecimal digits each", "%q is not a disk UUID", clip(s))
	}
	copy(u[:], b)
	return u, nil
}

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails (crypto/rand, since Go 1.24)
	return b
}

// clip shortens foreign text for a message.
func clip(s string) string {
	if len(s) > 80 {
		return s[:77] + "..."
	}
	return s
}
