package driver

import (
	"errors"
	"maps"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/stage"
)

func TestParameters(t *testing.T) {
	defaults := parameters{format: host.Thin, diskType: host.MonolithicFlat, partition: stage.PartitionNone,
		cloneMode: host.CloneLinked}
	with := func(change func(*parameters)) parameters {
		p := defaults
		change(&p)
		return p
	}
	for _, tc := range []struct {
		in   map[string]string
		want parameters
	}{
		{nil, defaults},
		{map[string]string{"datastore": "fast"}, with(func(p *parameters) { p.datastore = "fast" })},
		{map[string]string{"diskFormat": "eagerzeroedthick"}, with(func(p *parameters) { p.format = host.EagerZeroedThick })},
		{map[string]string{"diskType": "twoGbMaxExtentSparse", "diskFormat": "thin"}, with(func(p *parameters) { p.diskType = host.TwoGbMaxExtentSparse })},
		{map[string]string{"cloneMode": "full"}, with(func(p *parameters) { p.cloneMode = host.CloneFull })},
		{map[string]string{"partition": "gpt"}, with(func(p *parameters) { p.partition = stage.PartitionGPT })},
		{map[string]string{"transport": "san:hotadd:nbd"}, with(func(p *parameters) { p.transport = "san:hotadd:nbd" })},
		{map[string]string{"transport": "nbd"}, with(func(p *parameters) { p.transport = "nbd" })},
		{map[string]string{"csi.storage.k8s.io/fstype": "xfs", "csi.storage.k8s.io/pvc/name": "claim", "csi.storage.k8s.io/pvc/namespace": "ns",
			"csi.storage.k8s.io/pv/name": "pvc-1"}, with(func(p *parameters) { p.fsType = "xfs" })},
	} {
		got, err := parseParameters(tc.in)
		if err != nil || got != tc.want {
			t.Errorf("%v: %+v, %v; want %+v", tc.in, got, err, tc.want)
		}
		back, err := fromContext(got.context())
		if err != nil || back.partition != got.partition || back.transport != got.transport || back.fsType != got.fsType {
			t.Errorf("%v through the volume context: %+v, %v", tc.in, back, err)
		}
	}
}

// A refused parameter is named with its value and what is allowed.
func TestParameterRefusals(t *testing.T) {
	for _, tc := range []struct {
		in   map[string]string
		says []string
	}{
		{map[string]string{"diskformat": "thin"}, []string{`"diskformat"`, `"thin"`, "cloneMode, csi.storage.k8s.io/fstype, datastore, diskFormat, diskType, partition, transport"}},
		{map[string]string{"diskFormat": "Thin"}, []string{`"diskFormat"`, `"Thin"`, "thin, zeroedthick, eagerzeroedthick"}},
		{map[string]string{"diskType": "streamOptimized"}, []string{`"diskType"`, `"streamOptimized"`, "monolithicFlat, twoGbMaxExtentSparse"}},
		{map[string]string{"transport": "fc:nbd"}, []string{`"transport"`, `"fc:nbd"`, "san, hotadd, nbd", "san:hotadd:nbd"}},
		{map[string]string{"transport": "nbd:nbd"}, []string{`"transport"`, `"nbd:nbd"`, "san, hotadd, nbd"}},
		{map[string]string{"transport": ""}, []string{`"transport"`, `""`, "san, hotadd, nbd"}},
		{map[string]string{"partition": ""}, []string{`"partition"`, `""`, "none, gpt"}},
		{map[string]string{"datastore": ""}, []string{`"datastore"`}},
		{map[string]string{"csi.storage.k8s.io/fstype": "zfs"}, []string{"fstype", `"zfs"`, "ext4, xfs, btrfs"}},
		{map[string]string{"csi.storage.k8s.io/secret": "x"}, []string{"csi.storage.k8s.io/secret", "unknown"}},
		{map[string]string{"diskType": "twoGbMaxExtentSparse", "diskFormat": "zeroedthick"},
			[]string{`"diskFormat"`, `"zeroedthick"`, `"diskType"`, `"twoGbMaxExtentSparse"`, "thin"}},
	} {
		_, err := parseParameters(tc.in)
		if !errors.Is(err, fault.Invalid) {
			t.Errorf("%v: %v, want Invalid", tc.in, err)
			continue
		}
		for _, s := range tc.says {
			if !strings.Contains(err.Error(), s) {
				t.Errorf("%v: %q does not say %s", tc.in, err, s)
			}
		}
	}
	if _, err := fromContext(map[string]string{"partition": "mbr", "storage.kubernetes.io/csiProvisionerIdentity": "x"}); !errors.Is(err, fault.Invalid) {
		t.Errorf("volume context: %v", err)
	}
	if err := refuseMutable(map[string]string{"iops": "3"}); !errors.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "iops") {
		t.Errorf("mutable: %v", err)
	}
}

func TestNamesAndIDs(t *testing.T) {
	for name, ok := range map[string]bool{"": false, "pvc-1": true, strings.Repeat("x", 128): true, strings.Repeat("x", 129): false,
		strings.Repeat("ä", 1000): false, "a\x00b": false, "a\u009fb": false, "../../etc": true, "日本": true} {
		if err := checkName("volume", name); (err == nil) != ok || err != nil && !errors.Is(err, fault.Invalid) {
			t.Errorf("name %q: %v", clip(name), err)
		}
	}
	for id, want := range map[string]fault.Kind{"": fault.Invalid, "../../etc": fault.NotFound, "vd-x": fault.NotFound, host.DiskID("a"): ""} {
		if err := checkID(id); fault.KindOf(err) != want {
			t.Errorf("id %q: %v, want %q", id, err, want)
		}
	}
	for path, ok := range map[string]bool{"": false, "a/b": false, "/a/../b": false, "/a/b/": false, "/a//b": false, "/a/b": true} {
		if err := checkPath("target_path", path); (err == nil) != ok {
			t.Errorf("path %q: %v", path, err)
		}
	}
}

func TestSizes(t *testing.T) {
	const least = host.MinCapacity
	for _, tc := range []struct {
		required, limit, least, want int64 // want 0: OutOfRange
	}{
		{0, 0, least, gib},
		{0, 0, minXFS, gib},
		{1, 0, least, mib},
		{mib, 0, least, mib},
		{mib + 1, 0, least, 2 * mib},
		{gib, gib, least, gib},
		{gib - 1, gib - 1, least, 0},
		{0, 10*mib + 5, least, 10 * mib},
		{0, mib - 1, least, 0},
		{0, 2 * gib, least, gib},
		{2 * gib, gib, least, 0},
		{host.MaxCapacity, 0, least, host.MaxCapacity},
		{host.MaxCapacity + 1, 0, least, 0},
		{1<<63 - 1, 0, least, 0},
		{-1, 0, least, 0},
		{0, -1, least, 0},
		{299 * mib, 0, minXFS, 0},
		{300 * mib, 0, minXFS, 300 * mib},
		{0, 299 * mib, minXFS, 0},
		{108 * mib, 0, minBtrfs, 0},
		{109 * mib, 0, minBtrfs, 109 * mib},
	} {
		got, err := sizeOf(&csi.CapacityRange{RequiredBytes: tc.required, LimitBytes: tc.limit}, tc.least, defaultSize)
		switch {
		case tc.want == 0 && (!errors.Is(err, fault.OutOfRange) || !strings.Contains(err.Error(), "62 TiB")):
			t.Errorf("%+v: %d, %v; want OutOfRange with the range", tc, got, err)
		case tc.want != 0 && (err != nil || got != tc.want):
			t.Errorf("%+v: %d, %v", tc, got, err)
		}
	}
	if got, err := sizeOf(nil, least, defaultSize); got != gib || err != nil {
		t.Errorf("no range: %d, %v", got, err)
	}
}

func TestCapabilities(t *testing.T) {
	modes := csi.VolumeCapability_AccessMode_Mode_name
	for n := range maps.Keys(modes) {
		mode := csi.VolumeCapability_AccessMode_Mode(n)
		_, want := writers[mode]
		for _, c := range []*csi.VolumeCapability{mountCap(mode, "xfs"), blockCap(mode)} {
			got, err := parseCapability(c, parameters{})
			if (err == nil) != want {
				t.Errorf("%s: %v", mode, err)
			}
			if want && got.readOnly == writers[mode] {
				t.Errorf("%s: read-only %v", mode, got.readOnly)
			}
		}
	}
	// Which modes are for one path on a node: the second table of NodePublishVolume in the CSI specification.
	for mode, onePath := range map[csi.VolumeCapability_AccessMode_Mode]bool{
		csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER: true, csi.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY: true,
		csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER: true, csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER: false,
		csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY: false,
	} {
		if got, err := parseCapability(blockCap(mode), parameters{}); err != nil || got.singlePath != onePath {
			t.Errorf("%s: one path %v, %v", mode, got.singlePath, err)
		}
	}
	const rwo = csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER
	for _, tc := range []struct {
		c  *csi.VolumeCapability
		p  parameters
		fs string // "": Invalid
	}{
		{mountCap(rwo, ""), parameters{}, "ext4"},
		{mountCap(rwo, ""), parameters{fsType: "xfs"}, "xfs"},
		{mountCap(rwo, "ext4"), parameters{fsType: "xfs"}, "ext4"},
		{mountCap(rwo, "ntfs"), parameters{}, ""},
		{mountCap(rwo, "xfs"), parameters{partition: stage.PartitionGPT}, "xfs"},
		{blockCap(rwo), parameters{partition: stage.PartitionGPT}, ""},
		{&csi.VolumeCapability{AccessMode: &csi.VolumeCapability_AccessMode{Mode: rwo}}, parameters{}, ""},
		{nil, parameters{}, ""},
	} {
		got, err := parseCapability(tc.c, tc.p)
		if tc.fs == "" && !errors.Is(err, fault.Invalid) || tc.fs != "" && (err != nil || got.fsType != tc.fs) {
			t.Errorf("%v with %+v: %+v, %v", tc.c, tc.p, got, err)
		}
	}
}

func mountCap(mode csi.VolumeCapability_AccessMode_Mode, fs string) *csi.VolumeCapability {
	return &csi.VolumeCapability{AccessMode: &csi.VolumeCapability_AccessMode{Mode: mode},
		AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{FsType: fs}}}
}

func blockCap(mode csi.VolumeCapability_AccessMode_Mode) *csi.VolumeCapability {
	return &csi.VolumeCapability{AccessMode: &csi.VolumeCapability_AccessMode{Mode: mode},
		AccessType: &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}}}
}

// A node that stages a copy is told: its file system may be mounted beside its like.
func TestCopiesAreToldToTheNode(t *testing.T) {
	for _, tc := range []struct {
		source *csi.VolumeContentSource
		want   bool
	}{
		{nil, false},
		{contentSource(&host.Source{Disk: host.DiskID("x")}), true},
		{contentSource(&host.Source{Snapshot: host.SnapshotID("x")}), true},
	} {
		req := request("a")
		req.VolumeContentSource = tc.source
		r, err := parseCreate(req)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := fromContext(r.params.context()); err != nil || back.copy != tc.want {
			t.Errorf("%v: copy %v, %v", tc.source, back.copy, err)
		}
	}
}
