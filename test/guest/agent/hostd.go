package main

import (
	"context"
	"net/rpc"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/hotadd/guest"
	"github.com/vmdk-csi/vmdk-csi/pkg/node"
	"github.com/vmdk-csi/vmdk-csi/test/guest/call"
)

// hostdClient is the node plugin's hostd, which is outside: it has the hypervisor add and remove disks.
type hostdClient struct{ rpc *rpc.Client }

var _ node.Hostd = (*hostdClient)(nil)

func (h *hostdClient) call(ctx context.Context, method string, args any) (call.Answer, error) {
	var a call.Answer
	c := h.rpc.Go("Hostd."+method, args, &a, make(chan *rpc.Call, 1))
	select {
	case <-c.Done:
	case <-ctx.Done():
		return call.Answer{}, ctx.Err()
	}
	if c.Error != nil {
		return a, fault.New(fault.Unavailable, "", "hostd: %w", c.Error)
	}
	if a.Fault != nil {
		return a, a.Fault
	}
	return a, nil
}

func (h *hostdClient) Attach(ctx context.Context, req host.AttachRequest, _ host.Device) (host.Attachment, error) {
	a, err := h.call(ctx, "Attach", req)
	if err != nil {
		return host.Attachment{}, err
	}
	return a.Attachments[0], nil
}

func (h *hostdClient) Detach(ctx context.Context, id string) error {
	_, err := h.call(ctx, "Detach", call.Text{Text: id})
	return err
}

func (h *hostdClient) Attachments(ctx context.Context) ([]host.Attachment, error) {
	a, err := h.call(ctx, "Attachments", call.Text{})
	return a.Attachments, err
}

// identify is also of disks that are not attached.
func (h *hostdClient) identify(ctx context.Context, id string) (guest.Want, error) {
	a, err := h.call(ctx, "Identify", call.Text{Text: id})
	return a.Want, err
}

func noDescriptors() error {
	return fault.New(fault.Unsupported, "", "a disk of the hypervisor has no descriptors and does not grow here")
}

func (h *hostdClient) Grown(context.Context, string) (host.Attachment, error) {
	return host.Attachment{}, noDescriptors()
}
func (h *hostdClient) Sync(context.Context, []host.Held) ([]host.Held, error) {
	return nil, noDescriptors()
}
func (h *hostdClient) Handover(context.Context, func(host.Held) error) error { return noDescriptors() }
