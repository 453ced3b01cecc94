package vmdkctl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/lunlease"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/lunpath"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/store"
)

// How long an owner is watched: some of its beats to show that it lives, all of its lease before a LUN is formatted.
const (
	watchOwner = 3 * time.Second
	watchDead  = 10 * time.Second
)

// lunFlags are how targets let us in.
type lunFlags struct {
	initiator, secretFile, targetUser, targetSecretFile string
}

func (l *lunFlags) add(f *pflag.FlagSet) {
	f.StringVar(&l.initiator, "initiator", lunpath.DefaultInitiator, "our iSCSI name, for iscsi:// LUNs")
	f.StringVar(&l.secretFile, "chap-secret-file", "", "file with the CHAP secret of the user that the URL names")
	f.StringVar(&l.targetUser, "chap-target-user", "", "CHAP name that the target must prove")
	f.StringVar(&l.targetSecretFile, "chap-target-secret-file", "", "file with the CHAP secret that the target must prove")
}

// open opens a LUN by whatever names it.
func (l *lunFlags) open(ctx context.Context, where string, o lunpath.Options) (fsx.File, lunpath.Identity, error) {
	o.Credentials = lunpath.Credentials{Initiator: l.initiator, TargetUser: l.targetUser}
	for file, secret := range map[string]*string{l.secretFile: &o.Secret, l.targetSecretFile: &o.TargetSecret} {
		if file == "" {
			continue
		}
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, lunpath.Identity{}, fault.Wrap(err, "read a CHAP secret")
		}
		*secret = strings.TrimRight(string(text), "\r\n")
	}
	o.Visit = true
	return lunpath.Open(ctx, where, o)
}

// openStore opens a store to look at it.
func (l *lunFlags) openStore(ctx context.Context, where string) (lun fsx.File, s *store.Store, err error) {
	if lun, _, err = l.open(ctx, where, lunpath.Options{}); err != nil {
		return nil, nil, err
	}
	if s, err = store.Open(lun, store.Options{ReadOnly: true}); err != nil {
		return nil, nil, errors.Join(fault.Wrap(err, "%s", where), lun.Close())
	}
	return lun, s, nil
}

// mustBeOwnerless refuses a LUN that a host owns now: what a new store needs would be written over it, and by it.
func mustBeOwnerless(ctx context.Context, lun fsx.File) error {
	o, alive, err := lunlease.Watch(ctx, lun, watchDead)
	switch {
	case errors.Is(err, fault.NotFound), errors.Is(err, fault.Damaged): // no lease
		return nil
	case err != nil:
		return err
	case alive:
		return fault.New(fault.InUse, "Take the datastore away from all hosts first.", "the LUN belongs to host %s, which is alive", o.Host)
	}
	return nil
}

// lunInfo is info's answer.
type lunInfo struct {
	where string
	store.Info
	Designator string    `json:"designator,omitempty"` // the logical unit's own name, where this path tells it
	Owner      *lunOwner `json:"owner,omitempty"`      // the last one; none: nobody ever was
}

type lunOwner struct {
	lunlease.Owner
	Alive bool `json:"alive"`
}

func (l *lunFlags) info(ctx context.Context, where string) (i lunInfo, err error) {
	lun, id, err := l.open(ctx, where, lunpath.Options{})
	if err != nil {
		return i, err
	}
	defer lun.Close()
	s, err := store.Open(lun, store.Options{ReadOnly: true})
	if err != nil {
		return i, fault.Wrap(err, "%s", where)
	}
	i = lunInfo{where: where, Info: s.Info(), Designator: id.Designator}
	switch o, alive, err := lunlease.Watch(ctx, lun, watchOwner); {
	case err == nil:
		i.Owner = &lunOwner{o, alive}
	case !errors.Is(err, fault.NotFound) && !errors.Is(err, fault.Damaged):
		return i, err
	}
	return i, nil
}

func (i lunInfo) write(w io.Writer) error {
	f := storeFields(i.where, i.Info)
	if i.Designator != "" {
		f.Add("Unit", i.Designator)
	}
	f.Add("Owner", i.Owner.String())
	return f.Write(w)
}

func (o *lunOwner) String() string {
	if o == nil {
		return "none yet"
	}
	name := o.Host
	if o.Address != "" {
		name += " at " + o.Address
	}
	switch {
	case o.Released:
		return "none; " + name + " gave it back"
	case o.Alive:
		return fmt.Sprintf("%s, alive, the LUN's owner number %d", name, o.Generation)
	}
	return fmt.Sprintf("%s, not seen alive for %v; another host takes over after %v", name, watchOwner, o.Expiry)
}
