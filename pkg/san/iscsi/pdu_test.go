package iscsi

import (
	"bytes"
	"net"
	"testing"
)

func TestPDU(t *testing.T) {
	for _, d := range []digests{{}, {head: true}, {data: true}, {true, true}} {
		for n := range 9 {
			p := &pdu{data: bytes.Repeat([]byte{7}, n)}
			p.head[0] = opDataOut
			p.setU32(16, 0x01020304)
			var wire bytes.Buffer
			bufs := net.Buffers(d.pieces(p))
			if _, err := bufs.WriteTo(&wire); err != nil {
				t.Fatal(err)
			}
			if wire.Len()%4 != 0 {
				t.Errorf("%+v: %d bytes", d, wire.Len())
			}
			whole := wire.Bytes()
			var got pdu
			if err := d.read(bytes.NewReader(whole), &got, nil); err != nil || got.head != p.head || !bytes.Equal(got.data, p.data) {
				t.Errorf("%+v, %d bytes: %v", d, n, err)
			}
			for i := range whole { // every byte is under a digest, where there are any
				if covered := i < headLen && d.head || i >= headLen+4 && n > 0 && d.data && d.head; !covered || i >= 5 && i < 8 {
					continue
				}
				bad := bytes.Clone(whole)
				bad[i] ^= 0x40
				if err := d.read(bytes.NewReader(bad), &got, nil); err == nil {
					t.Errorf("%+v, %d bytes: byte %d may be changed", d, n, i)
				}
			}
		}
	}
}

// FuzzPDU: whatever a target sends, memory is bounded, and nothing panics.
func FuzzPDU(f *testing.F) {
	f.Add(make([]byte, headLen), false)
	f.Add(append([]byte{opDataIn, 0x81, 0, 0, 0, 0, 0, 4}, make([]byte, 48)...), true)
	f.Fuzz(func(t *testing.T, b []byte, digest bool) {
		d := digests{digest, digest}
		var p pdu
		if err := d.read(bytes.NewReader(b), &p, nil); err == nil && len(p.data) > maxSegment {
			t.Errorf("%d bytes of data", len(p.data))
		}
		parseText(b)
		_, _ = binaryValue(string(b))
	})
}
