package iscsi

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/md5" //nolint:gosec // what every target has (RFC 1994); others are offered first
	"crypto/rand"
	"crypto/sha1" //nolint:gosec // as above
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"hash"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// params are what login agreed on.
type params struct {
	digests
	targetSegment int // most data in a PDU to the target
	firstBurst    int
	maxBurst      int
	immediate     bool
	statSN, cmdSN uint32
	maxSN         uint32
}

// Stages of a login (section 11.12.3).
const (
	stageSecurity    = 0
	stageOperational = 1
	stageFull        = 3
)

const maxLoginText = 64 << 10

// login is one login phase on a fresh connection.
type login struct {
	c    *Config
	nc   net.Conn
	isid [6]byte
	p    params
	tag  uint32
	stat uint32

	algorithms string // that are offered for CHAP
}

// redirect is where the target wants to be asked instead.
type redirect struct{ address string }

func (r redirect) Error() string { return "the target is at " + r.address }

// connect dials the portal, or where it sends us, and logs in.
func connect(ctx context.Context, c *Config, isid [6]byte) (net.Conn, params, error) {
	portal := c.Portal
	algorithms := "7,6,5"
	for range 5 {
		nc, err := c.dial(ctx, portal)
		if err != nil {
			return nil, params{}, fault.New(fault.Unavailable, "Is the target up, and the portal right?", "portal %s: %w", portal, err)
		}
		l := &login{c: c, nc: nc, isid: isid, algorithms: algorithms, p: params{targetSegment: 8192, firstBurst: 64 << 10, maxBurst: 256 << 10, immediate: true}}
		deadline, ok := ctx.Deadline()
		if most := time.Now().Add(c.Timeout); !ok || most.Before(deadline) {
			deadline = most
		}
		nc.SetDeadline(deadline)
		stop := context.AfterFunc(ctx, func() { nc.Close() })
		err = l.run()
		stop()
		if err == nil {
			nc.SetDeadline(time.Time{})
			return nc, l.p, nil
		}
		nc.Close()
		if c.User != "" && algorithms != "5" && fault.KindOf(err) == fault.Unsupported {
			algorithms = "5" // tgtd refuses a list with one that it does not know
			continue
		}
		r, moved := err.(redirect) //nolint:errorlint // run returns it bare
		if !moved {
			return nil, params{}, fault.Wrap(err, "log in to %s at %s", c.Target, portal)
		}
		portal = r.address
	}
	return nil, params{}, fault.New(fault.Unavailable, "", "the target at %s moves on and on", c.Portal)
}

func (l *login) run() error {
	security := l.c.User != ""
	keys := []string{"InitiatorName=" + l.c.Initiator, "TargetName=" + l.c.Target, "SessionType=Normal"}
	method := "None"
	if security {
		method = "CHAP"
	}
	answer, err := l.exchange(stageSecurity, stageOperational, !security, append(keys, "AuthMethod="+method))
	if err != nil {
		return err
	}
	if got := answer["AuthMethod"]; got != method {
		return fault.New(fault.Denied, "Give the session the CHAP name and secret that the target wants.", "the target wants authentication %q, not %q", got, method)
	}
	if security {
		if err := l.chap(); err != nil {
			return err
		}
	}
	return l.operational()
}

// chap is RFC 7143 section 12.1.3.
func (l *login) chap() error {
	a, err := l.exchange(stageSecurity, stageOperational, false, []string{"CHAP_A=" + l.algorithms})
	if err != nil {
		return err
	}
	algorithm := map[string]func() hash.Hash{"5": md5.New, "6": sha1.New, "7": sha256.New}[a["CHAP_A"]]
	id, ierr := strconv.ParseUint(a["CHAP_I"], 10, 8)
	challenge, cerr := binaryValue(a["CHAP_C"])
	if algorithm == nil || ierr != nil || cerr != nil || len(challenge) == 0 || len(challenge) > 1024 {
		return fault.New(fault.Denied, "", "the target's CHAP challenge makes no sense (algorithm %q)", a["CHAP_A"])
	}
	answer := func(id byte, secret string, challenge []byte) []byte {
		h := algorithm()
		h.Write([]byte{id})
		h.Write([]byte(secret))
		h.Write(challenge)
		return h.Sum(nil)
	}
	keys := []string{"CHAP_N=" + l.c.User, "CHAP_R=0x" + hex.EncodeToString(answer(byte(id), l.c.Secret, challenge))}
	ours := make([]byte, 1+algorithm().Size())
	if _, err := rand.Read(ours); err != nil {
		return err
	}
	mutual := l.c.TargetSecret != ""
	if mutual {
		keys = append(keys, fmt.Sprintf("CHAP_I=%d", ours[0]), "CHAP_C=0x"+hex.EncodeToString(ours[1:]))
	}
	if a, err = l.exchange(stageSecurity, stageOperational, true, keys); err != nil || !mutual {
		return err
	}
	got, err := binaryValue(a["CHAP_R"])
	if err != nil || !hmac.Equal(got, answer(ours[0], l.c.TargetSecret, ours[1:])) || l.c.TargetUser != "" && a["CHAP_N"] != l.c.TargetUser {
		return fault.New(fault.Denied, "Is this the right target? Compare its outgoing CHAP name and secret.", "the target did not prove who it is")
	}
	return nil
}

// binaryValue is a large binary value (section 6.1): hexadecimal or base64.
func binaryValue(s string) ([]byte, error) {
	switch {
	case strings.HasPrefix(s, "0x"), strings.HasPrefix(s, "0X"):
		s = s[2:]
		if len(s)%2 == 1 {
			s = "0" + s
		}
		return hex.DecodeString(s)
	case strings.HasPrefix(s, "0b"), strings.HasPrefix(s, "0B"):
		return base64.StdEncoding.DecodeString(s[2:])
	}
	return nil, fmt.Errorf("%q is no binary value", s)
}

func (l *login) operational() error {
	digest := "None"
	if l.c.Digests {
		digest = "CRC32C,None"
	}
	a, err := l.exchange(stageOperational, stageFull, true, []string{"HeaderDigest=" + digest, "DataDigest=" + digest, "InitialR2T=Yes", "ImmediateData=Yes",
		fmt.Sprintf("MaxRecvDataSegmentLength=%d", maxSegment), fmt.Sprintf("MaxBurstLength=%d", l.p.maxBurst), fmt.Sprintf("FirstBurstLength=%d", l.p.firstBurst),
		"MaxOutstandingR2T=1", "MaxConnections=1", "DataPDUInOrder=Yes", "DataSequenceInOrder=Yes", "DefaultTime2Wait=0", "DefaultTime2Retain=0",
		"ErrorRecoveryLevel=0"})
	if err != nil {
		return err
	}
	l.p.digests = digests{a["HeaderDigest"] == "CRC32C", a["DataDigest"] == "CRC32C"}
	l.p.immediate = a["ImmediateData"] != "No"
	for key, into := range map[string]*int{"MaxRecvDataSegmentLength": &l.p.targetSegment, "MaxBurstLength": &l.p.maxBurst, "FirstBurstLength": &l.p.firstBurst} {
		if a[key] == "" {
			continue
		}
		n, err := strconv.ParseUint(a[key], 0, 32)
		if err != nil || n < 512 || n > 1<<24-1 {
			return fault.New(fault.Unavailable, "", "the target says %s=%s", key, a[key])
		}
		*into = int(min(n, 4<<20))
	}
	return nil
}

// exchange sends keys and collects the answer's. With transit it asks for the next stage and goes on until the target agrees.
func (l *login) exchange(stage, next byte, transit bool, keys []string) (map[string]string, error) {
	answer := map[string]string{}
	size := 0
	for range 16 {
		moved, more, err := l.step(stage, next, transit, keys, answer, &size)
		if err != nil {
			return nil, err
		}
		if keys = nil; !more && (moved || !transit) {
			return answer, nil
		}
	}
	return nil, fault.New(fault.Unavailable, "", "the target does not come to an end")
}

// step is one request and its response.
func (l *login) step(stage, next byte, transit bool, keys []string, answer map[string]string, size *int) (moved, more bool, err error) {
	var p pdu
	p.head[0] = opLogin | immediate
	p.head[1] = stage<<2 | next
	if transit {
		p.head[1] |= final
	}
	copy(p.head[8:], l.isid[:])
	p.setU32(16, l.tag)
	p.setU32(24, l.p.cmdSN)
	p.setU32(28, l.stat)
	for _, k := range keys {
		p.data = append(append(p.data, k...), 0)
	}
	bufs := net.Buffers(digests{}.pieces(&p))
	if _, err := bufs.WriteTo(l.nc); err != nil {
		return false, false, err
	}
	var r pdu
	if err := (digests{}).read(l.nc, &r, nil); err != nil {
		return false, false, err
	}
	if r.opcode() != opLoginAnswer {
		return false, false, fault.New(fault.Unavailable, "", "the target answered the login with opcode %#x", r.opcode())
	}
	values := parseText(r.data)
	if err := l.refusal(r.head[36], r.head[37], values["TargetAddress"]); err != nil {
		return false, false, err
	}
	if *size += len(r.data); *size > maxLoginText {
		return false, false, fault.New(fault.Unavailable, "", "the target's login text is longer than %d bytes", maxLoginText)
	}
	for k, v := range values {
		answer[k] = v
	}
	l.stat, l.p.statSN, l.p.cmdSN, l.p.maxSN = r.u32(24)+1, r.u32(24)+1, r.u32(28), r.u32(32)
	return r.head[1]&final != 0, r.head[1]&0x40 != 0, nil
}

func parseText(b []byte) map[string]string {
	out := map[string]string{}
	for _, kv := range bytes.Split(b, []byte{0}) {
		if k, v, ok := strings.Cut(string(kv), "="); ok {
			out[k] = v
		}
	}
	return out
}

// refusal reads the status of a login response (section 11.13.5).
func (l *login) refusal(class, detail byte, address string) error {
	switch {
	case class == 0:
		return nil
	case class == 1 && address != "":
		address, _, _ = strings.Cut(address, ",")
		return redirect{address}
	case class == 2 && (detail == 1 || detail == 2):
		return fault.New(fault.Denied, "Compare the CHAP name and secret with the target's, and its list of initiators with "+l.c.Initiator+".",
			"the target refuses this initiator (status %02x%02x)", class, detail)
	case class == 2 && detail == 3:
		return fault.New(fault.NotFound, "Compare the name with the targets that the portal has.", "the portal has no target %s", l.c.Target)
	case class == 2:
		return fault.New(fault.Unsupported, "", "the target refuses the login (status %02x%02x)", class, detail)
	}
	return fault.New(fault.Unavailable, "Try again.", "the target cannot log anybody in now (status %02x%02x)", class, detail)
}
