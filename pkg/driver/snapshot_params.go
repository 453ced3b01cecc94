package driver

import (
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/host"
)

// Allowed values of a VolumeSnapshotClass, the default first; nil: any.
var allowedOfSnapshots = map[string][]string{
	ParamFreeze:         {string(host.FreezeNone), string(host.FreezeFilesystem)},
	ParamFreezeDeadline: nil,
}

// parseFreeze reads the parameters of a VolumeSnapshotClass, with the defaults filled in. Keys of Kubernetes are let through: the
// external-snapshotter adds some with --extra-create-metadata.
func parseFreeze(in map[string]string) (host.Freeze, time.Duration, error) {
	for _, key := range slices.Sorted(maps.Keys(in)) {
		if strings.HasPrefix(key, prefixKube) {
			continue
		}
		values, known := allowedOfSnapshots[key]
		if !known {
			return "", 0, invalid("allowed parameters: "+strings.Join(slices.Sorted(maps.Keys(allowedOfSnapshots)), ", "),
				"parameter %q (value %q) is unknown", clip(key), clip(in[key]))
		}
		if err := checkValue("parameter", key, in[key], values); err != nil {
			return "", 0, err
		}
	}
	freeze := host.FreezeNone
	if f, ok := in[ParamFreeze]; ok {
		freeze = host.Freeze(f)
	}
	text, named := in[ParamFreezeDeadline]
	switch {
	case freeze == host.FreezeNone && named:
		return "", 0, invalid("set parameter "+ParamFreeze+" to "+string(host.FreezeFilesystem)+", or leave "+ParamFreezeDeadline+" out",
			"parameter %q: value %q has no meaning without a freeze", ParamFreezeDeadline, clip(text))
	case freeze == host.FreezeNone:
		return freeze, 0, nil
	case !named:
		return freeze, host.DefaultFreezeDeadline, nil
	}
	deadline, err := time.ParseDuration(text)
	if err != nil || deadline <= 0 || deadline > host.MaxFreezeDeadline {
		return "", 0, invalid("allowed values: a duration up to 60s, such as 10s or 500ms",
			"parameter %q: value %q is not allowed", ParamFreezeDeadline, clip(text))
	}
	return freeze, deadline, nil
}
