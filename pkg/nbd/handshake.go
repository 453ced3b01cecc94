package nbd

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// ErrGone ends a connection without a word: the peer left, as it may.
var errGone = errors.New("the peer has left")

// A peer gets that many options. More than that is no haggling any more.
const maxOptions = 256

// Option is one of the client's (proto.md, "Fixed newstyle negotiation").
type option struct {
	code uint32
	data []byte
}

// Handshake negotiates until the peer has an export: c.export is set then.
func (c *conn) handshake(ctx context.Context) error {
	hello := binary.BigEndian.AppendUint64(nil, magicServer)
	hello = binary.BigEndian.AppendUint64(hello, magicOption)
	hello = binary.BigEndian.AppendUint16(hello, flagFixedNewstyle|flagNoZeroes)
	if _, err := c.nc.Write(hello); err != nil {
		return err
	}
	var b [4]byte
	if _, err := io.ReadFull(c.nc, b[:]); err != nil {
		return errGone // somebody who looks whether there is a server
	}
	c.clientFlags = binary.BigEndian.Uint32(b[:])
	if c.clientFlags&^(flagFixedNewstyle|flagNoZeroes) != 0 {
		return fault.New(fault.Invalid, "", "the client sets unknown flags %#x", c.clientFlags)
	}
	for range maxOptions {
		o, err := readOption(c.nc)
		if err != nil {
			return err
		}
		done, err := c.answer(ctx, o)
		if err != nil || done {
			return err
		}
	}
	return fault.New(fault.Invalid, "", "the client sent %d options and chose no export", maxOptions)
}

// ReadOption reads an option. One whose data is too long has data nil: it was skipped.
func readOption(r io.Reader) (option, error) {
	var h [16]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return option{}, errGone
	}
	if binary.BigEndian.Uint64(h[:]) != magicOption {
		return option{}, fault.New(fault.Invalid, "", "what the client sends is no option")
	}
	o := option{code: binary.BigEndian.Uint32(h[8:])}
	n := binary.BigEndian.Uint32(h[12:])
	if n > maxOption {
		if n > 16*maxOption {
			return o, fault.New(fault.Invalid, "", "the client sends an option of %d bytes", n)
		}
		_, err := io.CopyN(io.Discard, r, int64(n))
		return o, err
	}
	o.data = make([]byte, n)
	_, err := io.ReadFull(r, o.data)
	return o, err
}

func (c *conn) reply(code, what uint32, data []byte) error {
	b := make([]byte, 0, 20+len(data))
	b = binary.BigEndian.AppendUint64(b, magicOptReply)
	b = binary.BigEndian.AppendUint32(b, code)
	b = binary.BigEndian.AppendUint32(b, what)
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	_, err := c.nc.Write(append(b, data...))
	return err
}

// Refuse answers an option with an error and a text for people.
func (c *conn) refuse(code, what uint32, text string) error {
	return c.reply(code, what, []byte(strings.ToValidUTF8(text[:min(len(text), maxString)], "")))
}

// Answer answers an option; done says that transmission begins.
func (c *conn) answer(ctx context.Context, o option) (done bool, err error) {
	if c.mustTLS && !c.tls && o.code != optStartTLS && o.code != optAbort {
		// proto.md, "TLS support", FORCEDTLS: every option but these two.
		if o.code == optExportName {
			return false, fault.New(fault.Denied, "", "the client asks for an export without TLS")
		}
		return false, c.refuse(o.code, repErrTLSReqd, "this server wants TLS first")
	}
	if o.data == nil {
		return false, c.refuse(o.code, repErrTooBig, "the option is too long")
	}
	switch o.code {
	case optExportName:
		return true, c.exportName(ctx, string(o.data))
	case optAbort:
		_ = c.reply(o.code, repAck, nil) // the client need not wait for it
		return false, errGone
	case optStartTLS:
		return false, c.startTLS(ctx, o)
	case optList:
		return false, c.list(ctx, o)
	case optInfo, optGo:
		return c.infoGo(ctx, o)
	case optStructuredReply:
		if len(o.data) != 0 {
			return false, c.refuse(o.code, repErrInvalid, "this option has no data")
		}
		c.structured = true
		return false, c.reply(o.code, repAck, nil)
	case optListMeta, optSetMeta:
		return false, c.metaContext(ctx, o)
	}
	return false, c.refuse(o.code, repErrUnsup, "")
}

// StartTLS changes to TLS. Nothing that was negotiated before counts (proto.md, "NBD_OPT_STARTTLS"), and because nothing is read
// ahead during the handshake, nothing that was sent before is taken for what came through TLS.
func (c *conn) startTLS(ctx context.Context, o option) error {
	switch {
	case len(o.data) != 0 || c.tls:
		return c.refuse(o.code, repErrInvalid, "TLS cannot start here")
	case c.s.o.TLS == nil:
		return c.refuse(o.code, repErrPolicy, "this server has no certificate")
	}
	if err := c.reply(o.code, repAck, nil); err != nil {
		return err
	}
	t := tls.Server(c.nc, c.s.o.TLS)
	if err := t.HandshakeContext(ctx); err != nil {
		return fault.New(fault.Denied, "", "TLS with %s: %w", c.peer.Address, err)
	}
	if certs := t.ConnectionState().PeerCertificates; len(certs) > 0 && len(t.ConnectionState().VerifiedChains) > 0 {
		c.peer.Certificate = certs[0]
	}
	c.nc, c.tls, c.structured, c.contexts = t, true, false, nil
	c.hold("", nil)
	return nil
}

func (c *conn) list(ctx context.Context, o option) error {
	if len(o.data) != 0 {
		return c.refuse(o.code, repErrInvalid, "this option has no data")
	}
	l, ok := c.s.r.(Lister)
	if !ok {
		return c.refuse(o.code, repErrPolicy, "this server tells no names")
	}
	names, err := l.List(ctx, c.peer)
	if err != nil {
		return c.refuse(o.code, repErrPolicy, err.Error())
	}
	for _, n := range names {
		b := binary.BigEndian.AppendUint32(nil, uint32(len(n)))
		if err := c.reply(o.code, repServer, append(b, n...)); err != nil {
			return err
		}
	}
	return c.reply(o.code, repAck, nil)
}

// Resolve finds the export, once for all the options that name it.
func (c *conn) resolve(ctx context.Context, name string) (*Export, error) {
	if c.export != nil && c.exportNamed == name {
		return c.export, nil
	}
	e, err := c.s.r.Resolve(ctx, name, c.peer)
	if err != nil {
		return nil, err
	}
	c.hold(name, e)
	c.contexts = nil
	return e, nil
}

// Hold keeps an export instead of the one before.
func (c *conn) hold(name string, e *Export) {
	c.export.close()
	c.exportNamed, c.export = name, e
}

// RepOf is the option error for a failure to resolve.
func repOf(err error) uint32 {
	switch fault.KindOf(err) {
	case fault.NotFound:
		return repErrUnknown
	case fault.Unavailable, fault.InProgress:
		return repErrShutdown
	case fault.Invalid:
		return repErrInvalid
	}
	return repErrPolicy
}

func (c *conn) exportName(ctx context.Context, name string) error {
	e, err := c.resolve(ctx, name)
	if err != nil {
		return err // this option has no reply for errors
	}
	b := binary.BigEndian.AppendUint64(nil, uint64(e.Device.Size()))
	b = binary.BigEndian.AppendUint16(b, e.flags(c.structured))
	if c.clientFlags&flagNoZeroes == 0 {
		b = append(b, make([]byte, 124)...)
	}
	c.size = e.Device.Size()
	_, err = c.nc.Write(b)
	return err
}

func (c *conn) infoGo(ctx context.Context, o option) (done bool, err error) {
	name, infos, ok := parseInfo(o.data)
	if !ok {
		return false, c.refuse(o.code, repErrInvalid, "the option's data is not what it says")
	}
	e, err := c.resolve(ctx, name)
	if err != nil {
		return false, c.refuse(o.code, repOf(err), err.Error())
	}
	c.size = e.Device.Size()
	info := func(kind uint16, data []byte) {
		if err == nil {
			err = c.reply(o.code, repInfo, append(binary.BigEndian.AppendUint16(nil, kind), data...))
		}
	}
	export := binary.BigEndian.AppendUint64(nil, uint64(c.size))
	info(infoExport, binary.BigEndian.AppendUint16(export, e.flags(c.structured)))
	for _, kind := range infos {
		switch kind {
		case infoName:
			info(kind, []byte(name))
		case infoDescription:
			info(kind, []byte(c.describe(e)))
		}
	}
	sizes := binary.BigEndian.AppendUint32(nil, e.minBlock(c.size))
	sizes = binary.BigEndian.AppendUint32(sizes, e.preferredBlock())
	info(infoBlockSize, binary.BigEndian.AppendUint32(sizes, maxPayload))
	if err == nil {
		err = c.reply(o.code, repAck, nil)
	}
	return o.code == optGo, err
}

// ParseInfo takes the data of NBD_OPT_INFO and NBD_OPT_GO apart.
func parseInfo(b []byte) (name string, infos []uint16, ok bool) {
	p := parser{b: b}
	name = p.str()
	n := p.u16()
	if int(n) > len(p.b)/2 {
		return "", nil, false
	}
	seen := map[uint16]bool{} // each is answered once, however often it was asked
	for range n {
		if k := p.u16(); !seen[k] {
			seen[k] = true
			infos = append(infos, k)
		}
	}
	return name, infos, p.done()
}

const instanceMark = "instance="

// Describe has who we are for people, and for a client that wants to know whether it is still the same server.
func (c *conn) describe(e *Export) string {
	d := fmt.Sprintf("vmdk-csi %s%s%s", instanceMark, c.s.instance, e.Instance)
	if e.Description != "" {
		d += " " + e.Description
	}
	return d[:min(len(d), maxString)]
}

// PeerOf finds out who is at the other end.
func peerOf(nc net.Conn) (p Peer, local bool) {
	p = Peer{UID: -1, Address: nc.RemoteAddr().String()}
	u, ok := nc.(*net.UnixConn)
	if !ok {
		return p, false
	}
	p.Address = "unix"
	raw, err := u.SyscallConn()
	if err != nil {
		return p, true
	}
	_ = raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			p.UID = int(cred.Uid)
			p.Address = fmt.Sprintf("unix, pid %d, uid %d", cred.Pid, cred.Uid)
		}
	})
	return p, true
}

func deadline(d time.Duration) time.Time { return time.Now().Add(d) }
