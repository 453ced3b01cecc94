package scsi

import (
	"encoding/binary"
	"encoding/hex"
	"strings"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// Identity is how a logical unit is told from all others, through whatever path it is seen.
type Identity struct {
	// Designator is the best of the unit's designators of page 83h, as udev writes it: "naa." or "eui." or "t10." and the
	// value; "" when it has none.
	Designator string
	Vendor     string
	Product    string
	Serial     string
	Blocks     uint64 // capacity in blocks
	BlockSize  int    // bytes
}

// Bytes is the capacity.
func (id Identity) Bytes() int64 { return int64(id.Blocks) * int64(id.BlockSize) }

// Types of designators (SPC-4 table 531), and the association with the logical unit (table 532).
const (
	designatorT10 = 1
	designatorEUI = 2
	designatorNAA = 3
)

// parseDesignators chooses the best designator of a device identification page (SPC-4 section 7.8.5): NAA before EUI-64 before T10, the
// longest of a kind, of those that belong to the logical unit itself. RFC 8154 section 2.4.10 prefers the same.
func parseDesignators(page []byte) (string, error) {
	body, err := vpdBody(page, 0x83)
	if err != nil {
		return "", err
	}
	best, bestRank := "", -1
	for len(body) >= 4 {
		n := int(body[3])
		if 4+n > len(body) {
			return "", fault.New(fault.Damaged, "", "device identification page: a designator of %d bytes does not fit", n)
		}
		v := body[4 : 4+n]
		if association := body[1] >> 4 & 3; association == 0 && n > 0 {
			if name, rank := designator(body[1]&0xf, v); rank > bestRank {
				best, bestRank = name, rank
			}
		}
		body = body[4+n:]
	}
	return best, nil
}

func designator(kind byte, v []byte) (name string, rank int) {
	switch kind {
	case designatorNAA:
		return "naa." + hex.EncodeToString(v), 200 + len(v)
	case designatorEUI:
		return "eui." + hex.EncodeToString(v), 100 + len(v)
	case designatorT10:
		return "t10." + clean(v), 0
	}
	return "", -1
}

// vpdBody is what follows a vital product data page's header of four bytes.
func vpdBody(page []byte, code byte) ([]byte, error) {
	if len(page) < 4 || page[1] != code {
		return nil, fault.New(fault.Damaged, "", "this is no vital product data page %02Xh", code)
	}
	return page[4:min(len(page), 4+int(binary.BigEndian.Uint16(page[2:])))], nil
}

// clean is an ASCII field without what pads it; other bytes become '?'.
func clean(v []byte) string {
	b := []byte(strings.Trim(string(v), " \x00"))
	for i, c := range b {
		if c < 0x20 || c > 0x7e {
			b[i] = '?'
		}
	}
	return string(b)
}
