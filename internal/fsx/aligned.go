package fsx

import (
	"sync"
	"unsafe"
)

// bufferAlign fits every direct I/O alignment in use: memory pages and the largest logical block size.
const bufferAlign = 4096

// AlignedBuffer returns n zeroed bytes that direct I/O can use without a copy. Go's heap does not move them.
func AlignedBuffer(n int) []byte {
	raw := make([]byte, n+bufferAlign)
	skip := int(-addressOf(raw) & (bufferAlign - 1))
	return raw[skip : skip+n : skip+n]
}

func addressOf(p []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(p))) }

// bounceSize is how much of a request that direct I/O cannot take as it is moves at a time.
const bounceSize = 256 << 10

var bouncePool = sync.Pool{New: func() any { b := AlignedBuffer(bounceSize); return &b }}
