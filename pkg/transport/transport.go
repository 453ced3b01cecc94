package transport

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/hotadd"
)

// Names of transports.
const (
	NameSAN    = "san"    // blocks of a LUN, by a map
	NameHotAdd = "hotadd" // the file, as a disk of the host's bus
	NameNBD    = "nbd"    // over the network, from a host that reaches the file
	Default    = NameHotAdd
)

// Names are all transports, the fastest first.
func Names() []string { return []string{NameSAN, NameHotAdd, NameNBD} }

// ParseOrder reads an order of transports: names separated by colons (as VMware writes them, "san:hotadd:nbd") or commas.
// Kind: Invalid, naming the allowed ones. Whether a host can do them shows when it attaches.
func ParseOrder(order string, allowed ...string) ([]string, error) {
	if len(allowed) == 0 {
		allowed = Names()
	}
	names := strings.FieldsFunc(order, func(r rune) bool { return r == ':' || r == ',' })
	for i, n := range names {
		if !slices.Contains(allowed, n) || slices.Contains(names[:i], n) {
			return nil, fault.New(fault.Invalid, "", "transport %q: %q is unknown here or named twice; allowed are %s", order, n,
				strings.Join(allowed, ", "))
		}
	}
	if len(names) == 0 {
		return nil, fault.New(fault.Invalid, "", "transport %q names none; allowed are %s", order, strings.Join(allowed, ", "))
	}
	return names, nil
}

// Transport is one way to a disk's bytes.
type Transport interface {
	Name() string
	// Attach makes the disk reachable and gives it its slot; repeated, it returns the same one. Kinds: Exhausted, which
	// ends the search (every transport shares the bus), and others, which let the next transport be tried.
	Attach(ctx context.Context, disk hotadd.Disk) (hotadd.Slot, error)
	// Detach undoes Attach; not attached is detached already.
	Detach(ctx context.Context, id string) error
}

// Skip is a transport that was asked for and not used.
type Skip struct {
	Name   string
	Reason error
}

// Chosen is the transport that a disk is reached by.
type Chosen struct {
	Name    string
	Slot    hotadd.Slot
	Skipped []Skip // asked for before Name, in that order
}

// Picker knows the transports of this host.
type Picker struct{ known []Transport }

// New makes a Picker of the host's transports.
func New(known ...Transport) *Picker { return &Picker{known: known} }

// Order is ParseOrder of the transports that this Picker has; "" is Default.
func (p *Picker) Order(order string) ([]string, error) {
	if order == "" {
		order = Default
	}
	return ParseOrder(order, p.names()...)
}

func (p *Picker) names() []string {
	names := make([]string, 0, len(p.known))
	for _, t := range p.known {
		names = append(names, t.Name())
	}
	return names
}

func (p *Picker) find(name string) Transport {
	for _, t := range p.known {
		if t.Name() == name {
			return t
		}
	}
	return nil
}

// Attach tries the transports in order. When none works the error has all their reasons.
func (p *Picker) Attach(ctx context.Context, order string, disk hotadd.Disk) (Chosen, error) {
	names, err := p.Order(order)
	if err != nil {
		return Chosen{}, err
	}
	var c Chosen
	var reasons []error
	for _, n := range names {
		slot, err := p.find(n).Attach(ctx, disk)
		if err == nil {
			c.Name, c.Slot = n, slot
			return c, nil
		}
		err = fault.Wrap(err, "transport %s", n)
		if len(names) == 1 || errors.Is(err, fault.Exhausted) {
			return Chosen{}, err
		}
		c.Skipped = append(c.Skipped, Skip{Name: n, Reason: err})
		reasons = append(reasons, err)
	}
	return Chosen{}, errors.Join(reasons...)
}

// Detach undoes Attach of the transport that was chosen.
func (p *Picker) Detach(ctx context.Context, name, id string) error {
	t := p.find(name)
	if t == nil {
		return fault.New(fault.Invalid, "", "transport %q is unknown here; allowed are %s", name, strings.Join(p.names(), ", "))
	}
	return t.Detach(ctx, id)
}

// HotAdd is the transport over a bus: the host opens the disk's files itself.
func HotAdd(bus hotadd.Bus) Transport { return hotAdd{bus} }

type hotAdd struct{ hotadd.Bus }

func (hotAdd) Name() string { return NameHotAdd }
