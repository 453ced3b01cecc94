package vsphere

import (
	"context"
	"errors"
	"log/slog"
	"net/url"
	"sync"
	"time"

	vim "github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/session"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// link is a logged-in connection that stays logged in.
type link struct {
	client *vim25.Client
	user   *url.Userinfo
	log    *slog.Logger
	stop   context.CancelFunc
	done   chan struct{} // closed when the keep-alive goroutine has ended

	turn  sync.Mutex // guards what follows; held during a login
	login uint64     // how often there was one
}

func connect(ctx context.Context, c Config) (*link, error) {
	address := *c.URL
	address.User = nil // never in a message
	sc := soap.NewClient(&address, false)
	if c.CAFile != "" {
		if err := sc.SetRootCAs(c.CAFile); err != nil {
			return nil, err
		}
	}
	vc, err := vim25.NewClient(ctx, sc)
	if err != nil {
		return nil, err
	}
	l := &link{client: vc, user: c.URL.User, log: c.Log, done: make(chan struct{})}
	if err := l.relogin(ctx, 0); err != nil {
		return nil, err
	}
	alive, stop := context.WithCancel(context.Background())
	l.stop = stop
	go l.keepAlive(alive, c.KeepAlive)
	return l, nil
}

func (l *link) logins() uint64 {
	l.turn.Lock()
	defer l.turn.Unlock()
	return l.login
}

// relogin logs in, unless somebody did since the caller counted seen logins.
func (l *link) relogin(ctx context.Context, seen uint64) error {
	l.turn.Lock()
	defer l.turn.Unlock()
	if l.login != seen {
		return nil
	}
	if err := session.NewManager(l.client).Login(ctx, l.user); err != nil {
		return err
	}
	l.login++
	return nil
}

// do runs op, and once more after a new login where the session had expired. op reads before it changes anything,
// so that doing it again is harmless.
func (l *link) do(ctx context.Context, op func(context.Context) error) error {
	seen := l.logins()
	err := op(ctx)
	if !vim.Is(err, &types.NotAuthenticated{}) {
		return err
	}
	l.log.Info("session with vSphere expired, logging in again")
	if err := l.relogin(ctx, seen); err != nil {
		return err
	}
	return op(ctx)
}

func (l *link) keepAlive(ctx context.Context, every time.Duration) {
	defer close(l.done)
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		err := l.do(ctx, func(ctx context.Context) error {
			// Asking for the server's time needs no session, and does not prove that there is one; asking for the session does.
			s, err := session.NewManager(l.client).UserSession(ctx)
			if err == nil && s == nil {
				return soap.WrapVimFault(&types.NotAuthenticated{})
			}
			return err
		})
		if err != nil && ctx.Err() == nil {
			l.log.Warn("session with vSphere is not kept alive", "error", err)
		}
	}
}

// close ends the goroutine, waits for it and logs out.
func (l *link) close(ctx context.Context) error {
	l.stop()
	<-l.done
	_, err := methods.Logout(ctx, l.client, &types.Logout{This: *l.client.ServiceContent.SessionManager})
	l.client.CloseIdleConnections()
	if vim.Is(err, &types.NotAuthenticated{}) || errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}
