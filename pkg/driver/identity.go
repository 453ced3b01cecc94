package driver

import (
	"context"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// Name is the driver's.
const Name = "csi.vmdk-csi.io"

// Identity is the CSI identity service.
type Identity struct {
	csi.UnimplementedIdentityServer
	Version string
	// Ready says why the plugin cannot work now; nil: it always can.
	Ready func(context.Context) error
}

// GetPluginInfo names the driver.
func (i *Identity) GetPluginInfo(context.Context, *csi.GetPluginInfoRequest) (*csi.GetPluginInfoResponse, error) {
	return &csi.GetPluginInfoResponse{Name: Name, VendorVersion: i.Version}, nil
}

// GetPluginCapabilities says what the plugin as a whole can do, "the grand sum" of its processes: the node's process also
// says that there is a controller service.
func (i *Identity) GetPluginCapabilities(context.Context, *csi.GetPluginCapabilitiesRequest) (*csi.GetPluginCapabilitiesResponse, error) {
	out := &csi.GetPluginCapabilitiesResponse{}
	add := func(t csi.PluginCapability_Service_Type) {
		out.Capabilities = append(out.Capabilities, &csi.PluginCapability{Type: &csi.PluginCapability_Service_{
			Service: &csi.PluginCapability_Service{Type: t}}})
	}
	add(csi.PluginCapability_Service_CONTROLLER_SERVICE)
	add(csi.PluginCapability_Service_VOLUME_ACCESSIBILITY_CONSTRAINTS)
	add(csi.PluginCapability_Service_SNAPSHOT_ACCESSIBILITY_CONSTRAINTS)
	out.Capabilities = append(out.Capabilities, &csi.PluginCapability{Type: &csi.PluginCapability_VolumeExpansion_{
		VolumeExpansion: &csi.PluginCapability_VolumeExpansion{Type: csi.PluginCapability_VolumeExpansion_ONLINE}}})
	return out, nil
}

// Probe says whether the plugin can work. "Not ready" is an answer; the orchestrator asks again.
func (i *Identity) Probe(ctx context.Context, _ *csi.ProbeRequest) (*csi.ProbeResponse, error) {
	if i.Ready != nil {
		if err := i.Ready(ctx); err != nil {
			return nil, toStatus(err)
		}
	}
	return &csi.ProbeResponse{Ready: wrapperspb.Bool(true)}, nil
}
