package nbd

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"math/bits"
	"net"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// Negotiated is what a connection agreed on. It is comparable: all connections of a session agree on the same.
type negotiated struct {
	size       int64
	flags      uint16
	structured bool
	allocation bool
	contextID  uint32 // of base:allocation
	minBlock   uint32
	maxPiece   int    // of one read or write
	instance   string // "" if the server does not tell
}

// MostPiece is the largest request that the client makes, however large the server would take it: others share the connection.
const mostPiece = 4 << 20

// Agreement is a negotiation of the client's side.
type agreement struct {
	nc   net.Conn
	name string
	got  negotiated
}

// Negotiate makes a connection for the export.
func (c *Client) negotiate(ctx context.Context, address, name, session string) (_ net.Conn, _ *negotiated, err error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	nc, err := c.dialNet(ctx, address)
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			nc.Close()
		}
	}()
	stop := context.AfterFunc(ctx, func() { _ = nc.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	a := &agreement{nc: nc, name: name, got: negotiated{minBlock: 1, maxPiece: mostPiece}}
	if err := a.greet(); err != nil {
		return nil, nil, unavailable(err, address)
	}
	if c.o.TLS != nil {
		if err := a.startTLS(ctx, serverName(c.o.TLS, address)); err != nil {
			return nil, nil, unavailable(err, address)
		}
	}
	if err := a.chooseExport(session); err != nil {
		return nil, nil, unavailable(err, address)
	}
	if !stop() {
		return nil, nil, fault.New(fault.Timeout, "", "the NBD server at %s took too long: %w", address, context.Cause(ctx))
	}
	return a.nc, &a.got, nil
}

// Unavailable is the failure of a connection, unless it is a fault already. What TLS refuses does not heal by itself.
func unavailable(err error, address string) error {
	var f *fault.Fault
	var op *net.OpError
	var verify *tls.CertificateVerificationError
	switch {
	case errors.As(err, &f):
		return fault.Wrap(err, "NBD server at %s", address)
	case errors.As(err, &verify):
		return fault.New(fault.Denied, "Use the server's certificate authority and its name.", "the NBD server at %s is not who it should be: %w", address, err)
	case errors.As(err, &op) && op.Op == "remote error":
		return fault.New(fault.Denied, "Use a certificate that the server's authority has signed.", "the NBD server at %s refused TLS: %w", address, err)
	}
	return fault.New(fault.Unavailable, "Look whether the server runs.", "NBD server at %s: %w", address, err)
}

func (a *agreement) greet() error {
	var b [18]byte
	if _, err := io.ReadFull(a.nc, b[:]); err != nil {
		return err
	}
	flags := binary.BigEndian.Uint16(b[16:])
	if binary.BigEndian.Uint64(b[:]) != magicServer || binary.BigEndian.Uint64(b[8:]) != magicOption || flags&flagFixedNewstyle == 0 {
		return fault.New(fault.Unsupported, "Use a server of this century.", "the other side speaks no fixed newstyle NBD")
	}
	return a.write(binary.BigEndian.AppendUint32(nil, uint32(flags&(flagFixedNewstyle|flagNoZeroes))))
}

func (a *agreement) write(b []byte) error {
	_, err := a.nc.Write(b)
	return err
}

func (a *agreement) ask(code uint32, data []byte) error {
	b := binary.BigEndian.AppendUint64(nil, magicOption)
	b = binary.BigEndian.AppendUint32(b, code)
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	return a.write(append(b, data...))
}

// Answer reads one reply to an option; an error reply is a fault.
func (a *agreement) answer(code uint32) (what uint32, data []byte, err error) {
	var h [20]byte
	if _, err := io.ReadFull(a.nc, h[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(h[16:])
	if binary.BigEndian.Uint64(h[:]) != magicOptReply || binary.BigEndian.Uint32(h[8:]) != code || n > maxOption {
		return 0, nil, fault.New(fault.Unavailable, "", "what the server sends is no answer to option %d", code)
	}
	data = make([]byte, n)
	if _, err := io.ReadFull(a.nc, data); err != nil {
		return 0, nil, err
	}
	what = binary.BigEndian.Uint32(h[12:])
	if what&(1<<31) != 0 {
		return what, nil, optionFault(what, string(data))
	}
	return what, data, nil
}

func optionFault(what uint32, text string) error {
	if text != "" {
		text = ": " + text
	}
	switch what {
	case repErrUnknown:
		return fault.New(fault.NotFound, "Use another name, or ask for a new ticket.", "there is no such export%s", text)
	case repErrPolicy:
		return fault.New(fault.Denied, "", "the server does not allow it%s", text)
	case repErrTLSReqd:
		return fault.New(fault.Denied, "Use TLS with a certificate.", "the server wants TLS%s", text)
	case repErrShutdown:
		return fault.New(fault.Unavailable, "", "the server is not ready%s", text)
	case repErrUnsup:
		return fault.New(fault.Unsupported, "", "the server does not know what is asked%s", text)
	}
	return fault.New(fault.Invalid, "", "the server refuses with %#x%s", what, text)
}

// Simple asks an option that is answered by one acknowledgement.
func (a *agreement) simple(code uint32) error {
	if err := a.ask(code, nil); err != nil {
		return err
	}
	what, _, err := a.answer(code)
	if err == nil && what != repAck {
		err = fault.New(fault.Unavailable, "", "the server answers option %d by %d", code, what)
	}
	return err
}

func (a *agreement) startTLS(ctx context.Context, config *tls.Config) error {
	if err := a.simple(optStartTLS); err != nil {
		if errors.Is(err, fault.Unsupported) {
			return fault.New(fault.Denied, "Give the server a certificate.", "the server cannot do TLS")
		}
		return err
	}
	config = config.Clone()
	config.MinVersion = max(config.MinVersion, tls.VersionTLS13)
	t := tls.Client(a.nc, config)
	if err := t.HandshakeContext(ctx); err != nil {
		return err
	}
	a.nc = t
	return nil
}

func appendString(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(s))), s...)
}

func (a *agreement) chooseExport(session string) error {
	err := a.simple(optStructuredReply)
	if err != nil && !errors.Is(err, fault.Unsupported) {
		return err
	}
	if err == nil {
		a.got.structured = true
		if err := a.setMeta(session); err != nil && !errors.Is(err, fault.Unsupported) {
			return err
		}
	}
	b := appendString(nil, a.name)
	b = binary.BigEndian.AppendUint16(b, 2)
	b = binary.BigEndian.AppendUint16(b, infoDescription)
	b = binary.BigEndian.AppendUint16(b, infoBlockSize)
	if err := a.ask(optGo, b); err != nil {
		return err
	}
	known := false
	for range maxOptions {
		what, data, err := a.answer(optGo)
		if err != nil {
			return err
		}
		if what == repAck {
			break
		}
		if what == repInfo && len(data) >= 2 {
			export, err := a.info(data)
			if err != nil {
				return err
			}
			known = known || export
		}
	}
	if !known {
		return fault.New(fault.Unavailable, "", "the server does not say how large the export is")
	}
	return nil
}

func (a *agreement) setMeta(session string) error {
	b := appendString(nil, a.name)
	b = binary.BigEndian.AppendUint32(b, 2)
	b = appendString(appendString(b, allocationContext), session)
	if err := a.ask(optSetMeta, b); err != nil {
		return err
	}
	for range maxOptions {
		what, data, err := a.answer(optSetMeta)
		if err != nil || what == repAck {
			return err
		}
		if what == repMeta && len(data) >= 4 && string(data[4:]) == allocationContext {
			a.got.allocation, a.got.contextID = true, binary.BigEndian.Uint32(data)
		}
	}
	return fault.New(fault.Unavailable, "", "the server lists contexts without end")
}

// Info takes what the server says about the export; export is whether it was its size.
func (a *agreement) info(data []byte) (export bool, err error) {
	p := parser{b: data}
	switch p.u16() {
	case infoExport:
		size := p.u64()
		a.got.flags = p.u16()
		if !p.done() || size>>63 != 0 {
			return false, fault.New(fault.Unavailable, "", "the server says nonsense about the export")
		}
		a.got.size = int64(size)
		return true, nil
	case infoBlockSize:
		least, _, most := p.u32(), p.u32(), p.u32()
		if !p.done() || bits.OnesCount32(least) != 1 || least > 64<<10 || most < least {
			return false, fault.New(fault.Unavailable, "", "the server says nonsense about block sizes")
		}
		a.got.minBlock = least
		a.got.maxPiece = int(min(most, mostPiece) / least * least)
	case infoDescription:
		if _, rest, ok := strings.Cut(string(p.b), "vmdk-csi "+instanceMark); ok {
			a.got.instance, _, _ = strings.Cut(rest, " ")
		}
	}
	return false, nil
}

// DialNet makes a connection that notices a dead peer.
func (c *Client) dialNet(ctx context.Context, address string) (net.Conn, error) {
	d := net.Dialer{Control: userTimeout, KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 4}}
	nc, err := d.DialContext(ctx, c.o.Network, address)
	if err != nil {
		return nil, fault.New(fault.Unavailable, "Look whether the server runs, and at its address.", "no NBD server at %s: %w", address, err)
	}
	return nc, nil
}

// ServerName fills in what the server must prove to be: the host of its address, unless the configuration says it.
func serverName(config *tls.Config, address string) *tls.Config {
	host, _, err := net.SplitHostPort(address)
	if err != nil || config.ServerName != "" || config.InsecureSkipVerify {
		return config
	}
	config = config.Clone()
	config.ServerName = host
	return config
}

// UserTimeout gives a peer up that does not acknowledge what was sent; the kernel's default is a quarter of an hour (tcp(7)).
func userTimeout(network, _ string, raw syscall.RawConn) (err error) {
	if network == "unix" {
		return nil
	}
	cerr := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 30_000) })
	return errors.Join(err, cerr)
}
