package hostd

import (
	"context"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// peers are where other hosts of the same LUNs answer: addresses, and names that stand for several.
type peers struct {
	own   string // host:port of this hostd
	fixed []string
	names []string // host:port, resolved anew each time: every address counts
	// lookup is for tests; nil: the system's resolver.
	lookup func(ctx context.Context, name string) ([]string, error)
}

// parsePeers reads --peers: host:port,... or dns:NAME:PORT.
func parsePeers(args []string, own string) (peers, error) {
	p := peers{own: own}
	for _, a := range args {
		name, dns := strings.CutPrefix(a, "dns:")
		if _, port, err := net.SplitHostPort(name); err != nil || port == "" {
			return p, fault.New(fault.Invalid, "Write HOST:PORT or dns:NAME:PORT, with commas between several.", "--peers=%s", a)
		}
		if dns {
			p.names = append(p.names, name)
		} else {
			p.fixed = append(p.fixed, name)
		}
	}
	return p, nil
}

const lookupTime = 3 * time.Second

// list is all of them, this hostd first. A name that cannot be resolved now leaves the others.
func (p peers) list(ctx context.Context) ([]string, error) {
	list := append([]string{p.own}, p.fixed...)
	ctx, cancel := context.WithTimeout(ctx, lookupTime)
	defer cancel()
	lookup := p.lookup
	if lookup == nil {
		lookup = net.DefaultResolver.LookupHost
	}
	for _, n := range p.names {
		name, port, _ := net.SplitHostPort(n) // parsePeers has seen it
		found, err := lookup(ctx, name)
		if err != nil {
			continue
		}
		slices.Sort(found)
		for _, address := range found {
			list = append(list, net.JoinHostPort(address, port))
		}
	}
	return unique(list), nil
}

// unique drops what was there before.
func unique(list []string) []string {
	var out []string
	for _, s := range list {
		if s != "" && !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}
