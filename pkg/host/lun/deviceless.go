package lun

import (
	"context"

	"github.com/vmdk-csi/vmdk-csi/pkg/hotadd"
	"github.com/vmdk-csi/vmdk-csi/pkg/transport"
)

// Deviceless are the transports of an inner host: it opens the files itself, and no kernel device needs a slot.
func Deviceless() *transport.Picker { return transport.New(deviceless{}) }

type deviceless struct{}

func (deviceless) Name() string { return transport.Default }

func (deviceless) Attach(context.Context, hotadd.Disk) (hotadd.Slot, error) {
	return hotadd.Slot{}, nil
}

func (deviceless) Detach(context.Context, string) error { return nil }
