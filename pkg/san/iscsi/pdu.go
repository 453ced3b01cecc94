package iscsi

import (
	"encoding/binary"
	"hash/crc32"
	"io"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// Opcodes (RFC 7143 section 11.2.1.2).
const (
	opNopOut       = 0x00
	opCommand      = 0x01
	opTask         = 0x02
	opLogin        = 0x03
	opDataOut      = 0x05
	opLogout       = 0x06
	opNopIn        = 0x20
	opResponse     = 0x21
	opTaskResponse = 0x22
	opLoginAnswer  = 0x23
	opDataIn       = 0x25
	opLogoutAnswer = 0x26
	opR2T          = 0x31
	opAsync        = 0x32
	opReject       = 0x3f

	immediate = 0x40 // bit of the opcode's byte
	final     = 0x80 // bit of byte 1
)

const (
	headLen = 48
	noTag   = 0xffffffff
	// maxSegment is the longest data segment that is taken: what login tells the target (MaxRecvDataSegmentLength).
	maxSegment = 256 << 10
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// pdu is a basic header segment and the data behind it.
type pdu struct {
	head [headLen]byte
	data []byte
}

func (p *pdu) opcode() byte            { return p.head[0] & 0x3f }
func (p *pdu) u32(at int) uint32       { return binary.BigEndian.Uint32(p.head[at:]) }
func (p *pdu) setU32(at int, v uint32) { binary.BigEndian.PutUint32(p.head[at:], v) }
func (p *pdu) setLen(n int)            { p.head[5], p.head[6], p.head[7] = byte(n>>16), byte(n>>8), byte(n) }
func (p *pdu) segment() int            { return int(p.head[5])<<16 | int(p.head[6])<<8 | int(p.head[7]) }
func (p *pdu) tag() uint32             { return p.u32(16) }

// digests says which CRC32C go with a PDU (section 13.1).
type digests struct{ head, data bool }

// read reads one PDU; data segments longer than maxSegment are refused before memory is taken. Where place gives room for the
// segment, it is read into that.
func (d digests) read(r io.Reader, p *pdu, place func(p *pdu) ([]byte, error)) error {
	if _, err := io.ReadFull(r, p.head[:]); err != nil {
		return err
	}
	ahs := int(p.head[4]) * 4
	extra := make([]byte, ahs+4)
	if !d.head {
		extra = extra[:ahs]
	}
	if _, err := io.ReadFull(r, extra); err != nil {
		return err
	}
	if d.head {
		sum := crc32.Update(crc32.Checksum(p.head[:], castagnoli), castagnoli, extra[:ahs])
		if sum != binary.LittleEndian.Uint32(extra[ahs:]) {
			return fault.New(fault.Unavailable, "", "header digest error")
		}
	}
	n := p.segment()
	if n > maxSegment {
		return fault.New(fault.Unavailable, "", "the target sent %d bytes where %d are allowed", n, maxSegment)
	}
	p.data = nil
	if n == 0 {
		return nil
	}
	var err error
	if place != nil {
		p.data, err = place(p)
	}
	if err != nil {
		return err
	}
	if len(p.data) != n {
		p.data = make([]byte, n)
	}
	if _, err := io.ReadFull(r, p.data); err != nil {
		return err
	}
	var pad [3 + 4]byte
	tail := pad[:(4-n%4)%4]
	if d.data {
		tail = pad[:len(tail)+4]
	}
	if _, err := io.ReadFull(r, tail); err != nil {
		return err
	}
	if d.data {
		at := len(tail) - 4
		sum := crc32.Update(crc32.Checksum(p.data, castagnoli), castagnoli, tail[:at])
		if sum != binary.LittleEndian.Uint32(tail[at:]) {
			return fault.New(fault.Unavailable, "", "data digest error")
		}
	}
	return nil
}

// pieces are the buffers that one PDU is on the wire.
func (d digests) pieces(p *pdu) [][]byte {
	p.setLen(len(p.data))
	out := [][]byte{p.head[:]}
	if d.head {
		out = append(out, binary.LittleEndian.AppendUint32(nil, crc32.Checksum(p.head[:], castagnoli)))
	}
	if n := len(p.data); n > 0 {
		out = append(out, p.data)
		tail := make([]byte, (4-n%4)%4, 8)
		if d.data {
			tail = binary.LittleEndian.AppendUint32(tail, crc32.Update(crc32.Checksum(p.data, castagnoli), castagnoli, tail))
		}
		if len(tail) > 0 {
			out = append(out, tail)
		}
	}
	return out
}
