package nbd

import (
	"context"
	"crypto/x509"
	"iter"

	"github.com/vmdk-csi/vmdk-csi/pkg/block"
)

// Resolver knows the exports. A server asks it once for each INFO, GO or list of contexts.
type Resolver interface {
	// Resolve finds the export that a peer names; "" is the default one. The error's text goes to the peer, so that it must not
	// tell what the peer may not know. Kinds: NotFound, Denied and others.
	Resolve(ctx context.Context, name string, peer Peer) (*Export, error)
}

// Lister is a Resolver that has names to tell. Without it NBD_OPT_LIST is refused.
type Lister interface {
	List(ctx context.Context, peer Peer) ([]string, error)
}

// Peer is who asks.
type Peer struct {
	// Certificate is the verified certificate of a TLS client, nil without TLS.
	Certificate *x509.Certificate
	// UID is the user of a unix socket's peer; -1 if there is none.
	UID int
	// Address is for messages.
	Address string
}

// Export is what a connection serves.
type Export struct {
	Device block.Device
	// Description is told to whoever asks for it.
	Description string
	ReadOnly    bool
	// MultiConn says that a flush on one connection covers what was acknowledged on any other (proto.md, CAN_MULTI_CONN). It
	// holds of a block.Device that all connections share.
	MultiConn bool
	// MinBlock, PreferredBlock are told as block sizes, in bytes; 0 is 1 and 4096. Requests that are no multiple of MinBlock are
	// refused. MinBlock is a power of two up to 64 KiB; it is taken to be less if it does not divide the size.
	MinBlock, PreferredBlock uint32
	// Allocation answers base:allocation and finds holes for structured reads; nil if everything is data.
	Allocation func(off, n int64) iter.Seq2[Extent, error]
	// Contexts are further ones, by name with its namespace: "vmdk:changed:monday".
	Contexts []Context
	// Instance differs for another opening of the disk, which may have lost what was acknowledged and not flushed. Another instance of
	// the server is another one of every export, anyway.
	Instance string
	// Revoked ends: every connection is closed, what it had begun is finished and not answered. nil never ends.
	Revoked context.Context //nolint:containedctx // it is the life of the export, not of a call
	// Close is called once, when the connection that got the export has ended and no request runs any more. May be nil.
	Close func()
}

// Context is a kind of block status.
type Context struct {
	Name string
	// Status describes [off, off+n) in order and without gaps.
	Status func(off, n int64) iter.Seq2[Extent, error]
}

// Extent is a stretch of one status.
type Extent struct {
	Length int64
	Flags  uint32 // StateHole, StateZero; for other contexts what they define
}

func (e *Export) close() {
	if e != nil && e.Close != nil {
		e.Close()
	}
}

func (e *Export) flags(structured bool) uint16 {
	f := uint16(transHasFlags | transFlush | transFUA | transCache)
	if e.ReadOnly {
		f |= transReadOnly
	} else {
		f |= transTrim | transWriteZeroes | transFastZero
	}
	if structured {
		f |= transDF
	}
	if e.MultiConn {
		f |= transMultiConn
	}
	return f
}

// MinBlock divides the size: a client that takes it by its word could not reach the end otherwise.
func (e *Export) minBlock(size int64) uint32 {
	b := max(e.MinBlock, 1)
	for size%int64(b) != 0 {
		b /= 2
	}
	return b
}

func (e *Export) preferredBlock() uint32 { return max(e.PreferredBlock, 4096, e.MinBlock) }

// AllContexts are the names that can be selected, with what answers them.
func (e *Export) allContexts() []Context {
	a := Context{allocationContext, e.Allocation}
	if a.Status == nil {
		a.Status = func(_, n int64) iter.Seq2[Extent, error] {
			return func(yield func(Extent, error) bool) { yield(Extent{Length: n}, nil) }
		}
	}
	return append([]Context{a}, e.Contexts...)
}
