package nbd

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/hex"
	"log/slog"
	"sync"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// Ticket is the secret that opens an export: 128 random bits in 26 letters and digits. Only Name tells it.
type Ticket struct{ name string }

// Name is what the client gives as the name of the export.
func (t Ticket) Name() string { return t.name }

// String is for logs: it identifies the ticket and opens nothing.
func (t Ticket) String() string {
	h := hashTicket(t.name)
	return "ticket " + hex.EncodeToString(h[:4])
}

// GoString keeps %#v from showing it.
func (t Ticket) GoString() string { return t.String() }

// LogValue implements slog.LogValuer.
func (t Ticket) LogValue() slog.Value { return slog.StringValue(t.String()) }

// MarshalText keeps encoders from showing it: who sends it to its owner says Name.
func (t Ticket) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// Grant is what a ticket is for.
type Grant struct {
	Volume   string
	Snapshot string // "" for the volume as it is
	Write    bool
	Node     string
	// Fingerprint of the only certificate that may use it (Fingerprint).
	Fingerprint string
}

// TicketUse is what happened to a ticket.
type TicketUse struct {
	Grant
	Issued time.Time
	Uses   int // connections that it has opened
	Open   int // of these, those that are still there
}

// TicketOptions say how long tickets live.
type TicketOptions struct {
	// Unused is how long a ticket with no open connection lives, since it was issued or the last one ended; default one minute. A
	// client that reconnects later needs another.
	Unused time.Duration
	// MaxUses bounds the connections that a ticket opens in its life, default 1024.
	MaxUses int
	// Now is for tests.
	Now func() time.Time
}

// Tickets issues tickets, and is the Resolver of a server that takes nothing else. It lists nothing.
type Tickets struct {
	open func(ctx context.Context, g Grant) (*Export, error)
	o    TicketOptions

	mu  sync.Mutex
	all map[[sha256.Size]byte]*issued
}

type issued struct {
	TicketUse
	idle   time.Time // since when it has no open connection
	life   context.Context
	revoke context.CancelFunc
}

var _ Resolver = (*Tickets)(nil)

// NewTickets makes tickets for what open opens. The exports' Revoked and Close are used as well.
func NewTickets(open func(ctx context.Context, g Grant) (*Export, error), o TicketOptions) *Tickets {
	if o.Unused == 0 {
		o.Unused = time.Minute
	}
	if o.MaxUses == 0 {
		o.MaxUses = 1024
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Tickets{open: open, o: o, all: map[[sha256.Size]byte]*issued{}}
}

// HashTicket is under what a ticket is kept. Looking for a hash takes no time that would tell how much of a guess was right, and the table does
// not have the secrets.
func hashTicket(name string) [sha256.Size]byte { return sha256.Sum256([]byte(name)) }

var ticketEncoding = base32.StdEncoding.WithPadding(base32.NoPadding)

// Issue makes a ticket. Kinds: Invalid.
func (t *Tickets) Issue(g Grant) (Ticket, error) {
	if g.Volume == "" || g.Fingerprint == "" {
		return Ticket{}, fault.New(fault.Invalid, "Log in with a certificate.", "a ticket is for a volume, and for the certificate of a client")
	}
	if g.Write && g.Snapshot != "" {
		return Ticket{}, fault.New(fault.Invalid, "Ask for reading.", "a snapshot cannot be written")
	}
	var b [16]byte
	_, _ = rand.Read(b[:]) // it never fails (crypto/rand)
	k := Ticket{ticketEncoding.EncodeToString(b[:])}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.expire()
	now := t.o.Now()
	x := &issued{TicketUse: TicketUse{Grant: g, Issued: now}, idle: now}
	x.life, x.revoke = context.WithCancel(context.Background())
	t.all[hashTicket(k.name)] = x
	return k, nil
}

// Expire drops what nobody uses. Called with mu held.
func (t *Tickets) expire() {
	now := t.o.Now()
	for h, x := range t.all {
		if x.Open == 0 && now.Sub(x.idle) > t.o.Unused {
			x.revoke()
			delete(t.all, h)
		}
	}
}

// Revoke ends a ticket and its connections; false if there is none such.
func (t *Tickets) Revoke(k Ticket) bool {
	h := hashTicket(k.name)
	return t.revokeIf(func(hash [sha256.Size]byte, _ Grant) bool { return hash == h }) > 0
}

// RevokeNode ends the tickets of a volume on a node, "" for all volumes or all nodes, and says how many they were.
func (t *Tickets) RevokeNode(volume, node string) int {
	return t.revokeIf(func(_ [sha256.Size]byte, g Grant) bool {
		return (volume == "" || g.Volume == volume) && (node == "" || g.Node == node)
	})
}

func (t *Tickets) revokeIf(which func([sha256.Size]byte, Grant) bool) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := 0
	for h, x := range t.all {
		if which(h, x.Grant) {
			x.revoke()
			delete(t.all, h)
			n++
		}
	}
	return n
}

// Use tells about a ticket.
func (t *Tickets) Use(k Ticket) (TicketUse, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.expire()
	if x := t.all[hashTicket(k.name)]; x != nil {
		return x.TicketUse, true
	}
	return TicketUse{}, false
}

// Resolve implements Resolver. What is wrong with a ticket is not told: all errors read the same.
func (t *Tickets) Resolve(ctx context.Context, name string, peer Peer) (*Export, error) {
	x, err := t.take(name, peer)
	if err != nil {
		return nil, err
	}
	e, err := t.open(ctx, x.Grant)
	if err != nil {
		t.giveBack(x)
		return nil, err
	}
	own := *e
	own.ReadOnly = own.ReadOnly || !x.Write
	outer := e.Revoked
	if outer == nil {
		outer = context.Background()
	}
	life, end := context.WithCancel(outer) // ends with the export at once, so that nothing is answered any more, and with the ticket soon
	stop := context.AfterFunc(x.life, end)
	own.Revoked = life
	own.Close = func() {
		stop()
		end()
		e.close()
		t.giveBack(x)
	}
	return &own, nil
}

func (t *Tickets) take(name string, peer Peer) (*issued, error) {
	refused := fault.New(fault.Denied, "Ask for a new ticket.", "the ticket is unknown, expired or revoked, or of another certificate")
	if peer.Certificate == nil {
		return nil, refused
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.expire()
	x := t.all[hashTicket(name)]
	if x == nil || x.Fingerprint != Fingerprint(peer.Certificate) || x.Uses >= t.o.MaxUses {
		return nil, refused
	}
	x.Uses++
	x.Open++
	return x, nil
}

func (t *Tickets) giveBack(x *issued) {
	t.mu.Lock()
	defer t.mu.Unlock()
	x.Open--
	x.idle = t.o.Now()
}
