package transport

import (
	"context"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/hotadd"
)

// Refuse is a transport that a datastore's kind rules out: it may be asked for, is skipped, and its reason is told.
func Refuse(name string, why *fault.Fault) Transport { return refused{name, why} }

type refused struct {
	name string
	why  *fault.Fault
}

func (r refused) Name() string { return r.name }

func (r refused) Attach(context.Context, hotadd.Disk) (hotadd.Slot, error) {
	return hotadd.Slot{}, r.why
}

// Detach: what was never attached is detached.
func (refused) Detach(context.Context, string) error { return nil }

// OfDirectory are the transports of a host's directories: hotadd over its bus, and why there are no others.
func OfDirectory(bus hotadd.Bus) []Transport {
	return []Transport{Refuse(NameSAN, NoSANOfDirectory()), HotAdd(bus), Refuse(NameNBD, NoNBDOfDirectory())}
}

// NoSANOfDirectory is why a directory's disks are not reached by block maps.
func NoSANOfDirectory() *fault.Fault {
	return fault.New(fault.Unsupported, "Use hotadd, or a datastore of kind lun.", "the datastore is a directory; block maps need a LUN")
}

// NoNBDOfDirectory is why a host by itself does not reach them through another one: pkg/host/lun asks the others.
func NoNBDOfDirectory() *fault.Fault {
	return fault.New(fault.Unsupported, "Use hotadd, or give vmdk-hostd --tls-ca-cert and --peers on all hosts.",
		"the datastore is a directory; this host opens its files, and knows no others that lend it disks")
}

// NoHotAddOfLUN is why the files of a LUN's store are not opened on every host.
func NoHotAddOfLUN() *fault.Fault {
	return fault.New(fault.Unsupported, "Use san, nbd or both.",
		"the datastore is a LUN; its metadata server alone opens the files in its store")
}
