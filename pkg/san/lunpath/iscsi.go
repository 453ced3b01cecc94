package lunpath

import (
	"context"
	"errors"
	"net"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/iscsi"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/scsi"
)

const (
	scheme       = "iscsi://"
	port         = "3260" // RFC 7143 section 16
	defaultMaxIO = 3 * time.Second
)

// parseURL is iscsi://[USER@]HOST[:PORT]/TARGET/LUN.
func parseURL(where string) (iscsi.Config, error) {
	wrong := func(format string, args ...any) (iscsi.Config, error) {
		return iscsi.Config{}, fault.New(fault.Invalid, "Write iscsi://[USER@]HOST[:PORT]/TARGET/LUN.", format, args...)
	}
	u, err := url.Parse(where)
	if err != nil { // whose text has the URL, and so perhaps a password
		return wrong("this is no URL of a LUN")
	}
	if _, has := u.User.Password(); has || strings.Contains(u.User.Username(), "%") {
		return wrong("a password in the URL of a LUN would be seen by everybody: give it in a file")
	}
	parts := strings.Split(strings.Trim(u.Path, "/"), "/")
	if u.Hostname() == "" || len(parts) != 2 || parts[0] == "" || u.RawQuery != "" || u.Fragment != "" {
		return wrong("%s names no logical unit", where)
	}
	lun, err := strconv.ParseUint(parts[1], 10, 14)
	if err != nil {
		return wrong("%s: the LUN %q is no number up to 16383", where, parts[1])
	}
	c := iscsi.Config{Portal: u.Host, Target: parts[0], LUN: uint16(lun), User: u.User.Username()}
	if u.Port() == "" {
		c.Portal = net.JoinHostPort(u.Hostname(), port)
	}
	return c, nil
}

func openISCSI(ctx context.Context, where string, o Options) (fsx.File, string, error) {
	c, err := parseURL(where)
	if err != nil {
		return nil, "", err
	}
	if o.MaxIO <= 0 {
		o.MaxIO = defaultMaxIO
	}
	c.Initiator, c.Secret, c.TargetUser, c.TargetSecret = o.Initiator, o.Secret, o.TargetUser, o.TargetSecret
	if c.Initiator == "" {
		c.Initiator = DefaultInitiator
	}
	// The connection is tried for as long as the LUN is open; each command waits for it MaxIO at most.
	c.Timeout, c.Log = o.MaxIO, o.Log
	s, err := iscsi.Open(ctx, c)
	if err != nil {
		return nil, "", fault.Wrap(err, "LUN %s", where)
	}
	f := &unitFile{where: where, session: s, writable: o.ReadWrite}
	if f.unit, err = scsi.Open(ctx, &bounded{s, o.MaxIO, &f.guard}); err != nil {
		return nil, "", errors.Join(fault.Wrap(err, "LUN %s", where), s.Close())
	}
	return f, f.unit.Identity().Designator, nil
}

// bounded gives a command up that has no answer after a while, and asks the guard before each that changes the medium: also those
// that a Unit repeats after the target was reset.
type bounded struct {
	scsi.Transport
	most  time.Duration
	guard *atomic.Pointer[func() error]
}

// PERSISTENT RESERVE OUT changes who may write, and is the guard's own means (SPC-4 section 6.14).
const opPersistReserveOut = 0x5f

func (b *bounded) Do(ctx context.Context, cmd scsi.Command) (scsi.Result, error) {
	if check := b.guard.Load(); check != nil && len(cmd.Out) > 0 && cmd.CDB[0] != opPersistReserveOut {
		if err := (*check)(); err != nil {
			return scsi.Result{}, err
		}
	}
	ctx, cancel := context.WithTimeoutCause(ctx, b.most,
		fault.New(fault.Timeout, "Look at the network and the target.", "the LUN did not answer for %v", b.most))
	defer cancel()
	return b.Transport.Do(ctx, cmd)
}
