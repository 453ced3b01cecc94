package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/internal/cli/vmdkctl"
)

// MeasureNBD reads a chain of two links over NBD, from `vmdkctl serve` and from qemu-nbd, by the same small client, in turns.
func measureNBD(ctx context.Context, b *bench) (part, error) {
	amount, rounds, each := int64(512<<20), 3, 2*time.Second
	if b.quick {
		amount, rounds, each = 16<<20, 1, 100*time.Millisecond
	}
	p := part{title: "NBD", about: fmt.Sprintf("`vmdkctl serve` beside `qemu-nbd`, read-only, each a process of its own, over a unix socket with one connection and simple "+
		"replies: a chain of two sparse links, %d MiB in the base, half of it again in the head, all in the page cache. Median of %d turns of %v.", amount>>20, rounds, each)}
	pl, err := b.place()
	if err != nil {
		return p, err
	}
	defer func() { err = errors.Join(err, pl.leave()) }()
	if err := pl.nbdChain(ctx, amount); err != nil {
		return p, err
	}
	ours, err := pl.serveNBD(ctx, "o.sock", "/proc/self/exe", "serve", "--read-only", "--unix", pl.file("o.sock"), pl.file("head.vmdk"))
	if err != nil {
		return p, err
	}
	defer func() { err = errors.Join(err, ours()) }()
	theirs, err := pl.serveNBD(ctx, "q.sock", "qemu-nbd", "-r", "-t", "-e", "4", "-f", "vmdk", "-k", pl.file("q.sock"), pl.file("head.vmdk"))
	if err != nil {
		return p, err
	}
	defer func() { err = errors.Join(err, theirs()) }()
	for _, c := range []struct {
		what, unit    string
		length, depth int
		random        bool
		goal          goal
	}{
		{"read 4 KiB at random, 64 at a time", "/s", 4096, 64, true, atLeast(1.5)},
		{"read 4 KiB at random, one at a time", "/s", 4096, 1, true, nil},
		{"read 1 MiB in order, 8 at a time", "MiB/s", 1 << 20, 8, false, atLeast(1)},
	} {
		var rates [2][]float64
		for range rounds {
			for i, socket := range []string{"o.sock", "q.sock"} {
				l := nbdLoad{length: c.length, depth: c.depth, random: c.random, size: amount, rng: rand.New(rand.NewPCG(b.seed, 5))}
				n, err := l.run(ctx, pl.file(socket), each)
				if err != nil {
					return p, fmt.Errorf("%s from %s: %w", c.what, socket, err)
				}
				if c.unit == "MiB/s" {
					n *= float64(c.length) / (1 << 20)
				}
				rates[i] = append(rates[i], n)
			}
		}
		p.rows = append(p.rows, row{c.what, value{median(rates[0]), c.unit}, "qemu-nbd", value{median(rates[1]), c.unit}, c.goal})
	}
	return p, nil
}

// NbdChain makes base.vmdk and head.vmdk by the peer, so that neither has an advantage of its own layout.
func (p *place) nbdChain(ctx context.Context, amount int64) error {
	const sparse = "subformat=monolithicSparse"
	if err := p.qemuImg(ctx, "create", "-q", "-f", "vmdk", "-o", sparse, "base.vmdk", fmt.Sprint(amount)); err != nil {
		return err
	}
	if err := p.qemuIO(ctx, "base.vmdk", fmt.Sprintf("write -q -P 7 0 %d", amount)); err != nil {
		return err
	}
	if err := p.qemuImg(ctx, "create", "-q", "-f", "vmdk", "-o", sparse, "-b", "base.vmdk", "-F", "vmdk", "head.vmdk"); err != nil {
		return err
	}
	var writes []string
	for off := int64(0); off < amount; off += 2 << 20 {
		writes = append(writes, fmt.Sprintf("write -q -P 9 %d 1M", off))
	}
	return p.qemuIO(ctx, "head.vmdk", writes...)
}

func (p *place) qemuIO(ctx context.Context, disk string, commands ...string) error {
	args := []string{"-f", "vmdk"}
	for _, c := range commands {
		args = append(args, "-c", c)
	}
	cmd := exec.CommandContext(ctx, "qemu-io", append(args, disk)...)
	cmd.Dir = p.path
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("qemu-io: %w\n%s", err, out)
	}
	return nil
}

// ServeNBD starts a server and waits until it accepts connections.
func (p *place) serveNBD(ctx context.Context, socket, program string, args ...string) (stop func() error, err error) {
	cmd := exec.CommandContext(ctx, program, args...)
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	stop = func() error {
		_ = cmd.Process.Signal(unix.SIGTERM)
		return cmd.Wait()
	}
	for limit := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		c, err := net.Dial("unix", p.file(socket))
		if err == nil {
			return stop, c.Close()
		}
		if time.Now().After(limit) {
			return nil, errors.Join(fmt.Errorf("%s does not serve: %w", program, err), stop())
		}
	}
}

// NbdLoad keeps depth reads under way over one connection. It knows just enough of the protocol, so that what is measured is the server.
type nbdLoad struct {
	length, depth int
	random        bool
	size          int64
	rng           *rand.Rand
	next          int64
}

const nbdPage = 64 << 10

// Run returns how many reads are answered in a second.
func (l *nbdLoad) run(ctx context.Context, socket string, d time.Duration) (float64, error) {
	nc, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return 0, err
	}
	defer nc.Close()
	if err := nbdHello(nc); err != nil {
		return 0, err
	}
	in := bufio.NewReaderSize(nc, nbdPage)
	data := make([]byte, l.length)
	var out []byte
	for range l.depth {
		out = l.request(out)
	}
	begin, done := time.Now(), 0
	for time.Since(begin) < d {
		if _, err := nc.Write(out); err != nil {
			return 0, err
		}
		out = out[:0]
		for more := true; more; more = in.Buffered() >= 16+l.length {
			var h [16]byte
			if _, err := io.ReadFull(in, h[:]); err != nil {
				return 0, err
			}
			if binary.BigEndian.Uint32(h[:]) != 0x67446698 || binary.BigEndian.Uint32(h[4:]) != 0 {
				return 0, fmt.Errorf("the answer is %x", h)
			}
			if _, err := io.ReadFull(in, data); err != nil {
				return 0, err
			}
			if data[0] != 7 && data[0] != 9 {
				return 0, fmt.Errorf("the data are %d", data[0])
			}
			done++
			out = l.request(out)
		}
	}
	return float64(done) / time.Since(begin).Seconds(), ctx.Err()
}

// Request appends a read (proto.md, "Request message").
func (l *nbdLoad) request(b []byte) []byte {
	off := l.next
	if l.random {
		off = l.rng.Int64N(l.size/int64(l.length)) * int64(l.length)
	}
	if l.next += int64(l.length); l.next == l.size {
		l.next = 0
	}
	b = append(b, 0x25, 0x60, 0x95, 0x13, 0, 0, 0, 0)
	b = binary.BigEndian.AppendUint64(b, uint64(off))
	b = binary.BigEndian.AppendUint64(b, uint64(off))
	return binary.BigEndian.AppendUint32(b, uint32(l.length))
}

// NbdHello chooses the default export by NBD_OPT_EXPORT_NAME, the shortest way.
func nbdHello(nc net.Conn) error {
	var b [18]byte
	if _, err := io.ReadFull(nc, b[:]); err != nil {
		return err
	}
	if _, err := nc.Write(append([]byte{0, 0, 0, 3}, "IHAVEOPT\x00\x00\x00\x01\x00\x00\x00\x00"...)); err != nil {
		return err
	}
	_, err := io.ReadFull(nc, b[:10])
	return err
}

// AsOther makes this program be another process that a section has started: `vmdkctl serve`, or a node that has a map.
func asOther(ctx context.Context) (code int, ok bool) {
	switch {
	case len(os.Args) > 2 && os.Args[1] == "serve":
		return vmdkctl.Main(ctx, os.Args[1:], os.Stdout, os.Stderr), true
	case len(os.Args) == 2 && os.Args[1] == "map":
		if err := serveMap(ctx, os.Stdin); err != nil {
			fmt.Fprintln(os.Stderr, "bench map:", err)
			return 1, true
		}
		return 0, true
	}
	return 0, false
}
