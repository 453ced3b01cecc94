package vmdkctl

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/vmdk-csi/vmdk-csi/internal/cli"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/lunpath"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/reserve"
)

// LunCleared is clear-reservations' answer.
type lunCleared struct {
	Registrations int    `json:"registrations"`    // of paths
	Holder        string `json:"holder,omitempty"` // key of who had the reservation
}

func (a *app) lunClearCommand(l *lunFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "clear-reservations LUN",
		Short: "Take all persistent reservations off a LUN",
		Long: `Take all persistent reservations and registrations off a LUN. They outlive hosts and power losses, so that a LUN whose hosts
are gone for good lets nobody else in. Refuses a LUN that a host owns now: its nodes would be cut off.`,
		Example: "  vmdkctl lun clear-reservations iscsi://array.example/iqn.2026-01.example:disks/1",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			r, err := l.clear(c.Context(), args[0])
			if err != nil {
				return err
			}
			return a.format.Write(a.out, r, func(w io.Writer) error {
				held := "nobody had it reserved"
				if r.Holder != "" {
					held = "it was reserved by " + r.Holder
				}
				_, err := fmt.Fprintf(w, "%s: %d registrations are gone, %s\n", cli.Printable(args[0]), r.Registrations, held)
				return err
			})
		},
	}
}

// The key of who clears; it is gone with all others.
const clearKey = reserve.Key(0x4c43) << 48

func (l *lunFlags) clear(ctx context.Context, where string) (r lunCleared, err error) {
	lun, _, err := l.open(ctx, where, lunpath.Options{ReadWrite: true, Blank: true})
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, lun.Close()) }()
	u, _, ok := lunpath.Reservations(lun)
	if !ok {
		return r, fault.New(fault.Unsupported, "Name a block device or an iscsi:// URL.", "%s has no reservations: it is a file", where)
	}
	s, err := u.State(ctx)
	if err != nil {
		return r, err
	}
	if err := u.Register(ctx, clearKey, false); err != nil {
		return r, err
	}
	if err := mustBeOwnerless(ctx, lun); err != nil {
		return r, errors.Join(err, u.Register(ctx, 0, false))
	}
	for _, k := range s.Keys {
		if !lunpath.IsVisitor(k) { // as this command is
			r.Registrations++
		}
	}
	if s.Held {
		r.Holder = fmt.Sprintf("%#x", uint64(s.Holder))
	}
	return r, u.Clear(ctx, clearKey)
}
