package vsphere

import (
	"context"
	"crypto/tls"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vmdk-csi/vmdk-csi/pkg/hotadd"
)

// machine is a simulated machine whose ReconfigVM tasks end with the faults that the test put before it.
type machine struct {
	*simulator.VirtualMachine

	mu      sync.Mutex
	faults  []types.BaseMethodFault // one per call; nil is none
	before  func(*types.VirtualMachineConfigSpec)
	changes []types.VirtualMachineConfigSpec
}

func (m *machine) ReconfigVMTask(ctx *simulator.Context, req *types.ReconfigVM_Task) soap.HasFault {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.changes = append(m.changes, req.Spec)
	if m.before != nil {
		m.before(&req.Spec)
	}
	if len(m.faults) > 0 {
		f := m.faults[0]
		m.faults = m.faults[1:]
		if f != nil {
			task := simulator.CreateTask(m.Reference(), "reconfigVm", func(*simulator.Task) (types.AnyType, types.BaseMethodFault) { return nil, f })
			return &methods.ReconfigVM_TaskBody{Res: &types.ReconfigVM_TaskResponse{Returnval: task.Run(ctx)}}
		}
	}
	return m.VirtualMachine.ReconfigVMTask(ctx, req)
}

func (m *machine) inject(faults ...types.BaseMethodFault) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.faults = faults
}

func (m *machine) calls() []types.VirtualMachineConfigSpec {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.changes
}

// rig is a vCenter with one machine without disks.
type rig struct {
	t        *testing.T
	model    *simulator.Model
	config   Config
	machine  *machine
	dir      string // the datastore's directory
	readOnly map[string]bool
}

const datastore = "LocalDS_0"

func newRig(t *testing.T) *rig {
	t.Helper()
	model := simulator.VPX()
	model.Machine = 1
	t.Cleanup(model.Remove)
	if err := model.Create(); err != nil {
		t.Fatal(err)
	}
	model.Service.TLS = new(tls.Config)
	server := model.Service.NewServer()
	t.Cleanup(server.Close)
	ca, err := server.CertificateFile()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(ca) })

	vm := model.Map().Any("VirtualMachine").(*simulator.VirtualMachine)
	devices := object.VirtualDeviceList(vm.Config.Hardware.Device)
	vm.Config.Hardware.Device = devices.Select(func(d types.BaseVirtualDevice) bool {
		_, disk := d.(*types.VirtualDisk)
		_, cd := d.(*types.VirtualCdrom) // in slot 0:0
		return !disk && !cd
	})
	vm.Config.ExtraConfig = append(vm.Config.ExtraConfig, &types.OptionValue{Key: "disk.EnableUUID", Value: "TRUE"})
	r := &rig{t: t, model: model, machine: &machine{VirtualMachine: vm}, readOnly: map[string]bool{}}
	model.Map().Put(r.machine)

	ds := model.Map().Any("Datastore").(*simulator.Datastore)
	if ds.Name != datastore {
		t.Fatalf("the simulator's datastore is %s", ds.Name)
	}
	r.dir = strings.TrimPrefix(ds.Info.GetDatastoreInfo().Url, "ds://")
	if err := os.MkdirAll(filepath.Join(r.dir, "disks"), 0o750); err != nil {
		t.Fatal(err)
	}
	r.config = Config{URL: server.URL, CAFile: ca, VM: vm.Config.Uuid, Files: r.file}
	return r
}

// file makes the disk's file when it is asked for, unless the id says that it is missing.
func (r *rig) file(_ context.Context, d hotadd.Disk) (File, error) {
	name := fmt.Sprintf("disks/%s.vmdk", d.ID)
	if d.ID != "missing" {
		if err := os.WriteFile(filepath.Join(r.dir, name), []byte("# Disk DescriptorFile\n"), 0o600); err != nil {
			return File{}, err
		}
	}
	return File{Path: fmt.Sprintf("[%s] %s", datastore, name), ReadOnly: r.readOnly[d.ID]}, nil
}

func (r *rig) open() *Bus {
	r.t.Helper()
	b, err := Open(r.t.Context(), r.config)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() {
		if err := b.Close(context.Background()); err != nil {
			r.t.Errorf("close: %v", err)
		}
	})
	return b
}
