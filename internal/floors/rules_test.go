package floors

import "strings"

const module = "github.com/vmdk-csi/vmdk-csi"

// The top of the house: programs, and what only programs use.
const top = 6

// Floors of the packages, by path below the module. A package belongs to the longest entry that is its path or a
// directory above it, so a new room needs a line here and a new closet does not.
var floors = map[string]int{
	"cmd":          top,
	"internal/cli": top, // commands, tables and progress of the programs: used by cmd alone

	"pkg/driver":         5,
	"pkg/node":           5,
	"pkg/worker":         5,
	"pkg/host/local":     5,
	"pkg/host/lun":       5,
	"pkg/host/kube":      5,
	"pkg/host/wire":      5,
	"pkg/hotadd/qemu":    5,
	"pkg/hotadd/vsphere": 5,
	"pkg/export/fuse":    5,
	"pkg/export/loop":    5,
	"pkg/export/ublk":    5,
	"pkg/export/nbd":     5,

	"pkg/volume": 4,

	"pkg/transport": 3,
	"pkg/remote":    3,

	"pkg/datastore":  2,
	"pkg/vmdk/chain": 2,
	"pkg/san":        2,
	"pkg/nbd":        2,
	"pkg/diskset":    2,
	"pkg/host":       2,
	"pkg/export":     2,
	"pkg/hotadd":     2,
	"pkg/stage":      2,

	"pkg/vmdk":  1,
	"pkg/lease": 1,

	"pkg/block":          0,
	"pkg/fault":          0,
	"internal/fsx":       0,
	"internal/sys":       0,
	"internal/kmutex":    0,
	"internal/statefile": 0,
}

// Ground is what the rest of floor 0 stands on.
var ground = []string{"pkg/fault", "internal/sys"}

// Outside the floors, each with the reason. What is listed here is imported by programs and by the packages named.
var outside = map[string]outsideRule{
	"pkg/api": {
		reason: "API types are shared by the floors that speak to Kubernetes",
		users:  []string{"cmd", "internal/cli", "pkg/host/kube", "pkg/node", "pkg/driver"},
	},
	"internal/floors": {reason: "this test"},
	"internal/crash":  {reason: "crash enumeration, tests only"},
	"internal/sim":    {reason: "simulators, for tests"},
	"internal/kubetest": {
		reason: "a real Kubernetes API as processes, for tests",
	},
	"test":   {reason: "suites over the whole product"},
	"charts": {reason: "the chart and its tests"},
	"hack":   {reason: "build and cluster tooling, not part of the product"},
}

type outsideRule struct {
	reason string
	users  []string
}

// Adapters implement a port for one environment. Whoever imports one has chosen an environment, and only a program may.
var adapters = []string{
	"pkg/host/local", "pkg/host/lun", "pkg/host/kube", "pkg/host/wire",
	"pkg/hotadd/qemu", "pkg/hotadd/vsphere",
	"pkg/export/fuse", "pkg/export/loop", "pkg/export/ublk", "pkg/export/nbd",
}

// A never is an import that no floor arithmetic forbids but the plan does.
type never struct {
	from   string // package or directory
	to     string // prefix of an import path, in this module or outside
	deep   bool   // also through other packages
	reason string
}

var nevers = []never{
	{from: "pkg/driver", to: module + "/pkg/vmdk", deep: true, reason: "CSI services never touch a disk format"},
	{from: "pkg/driver", to: module + "/internal/fsx", deep: true, reason: "the controller has no file of a datastore"},
	{from: "pkg/node", to: module + "/pkg/vmdk", deep: true, reason: "the node plugin is privileged and never parses a VMDK byte"},
	{from: "pkg/fault", to: module + "/", deep: true, reason: "the ground imports nothing of this module"},
	{from: "pkg/block", to: module + "/internal/", deep: true, reason: "a device knows no file system"},
}

// Environment is what floors 0 to 4 must not reach, directly or through others: they run in a shell as well as in a pod.
var environment = []struct{ prefix, reason string }{
	{"k8s.io/", "Kubernetes"},
	{"sigs.k8s.io/", "Kubernetes"},
	{"google.golang.org/grpc", "gRPC codes are known in pkg/driver/errors.go alone"},
	{"github.com/container-storage-interface/", "CSI messages stop at pkg/driver"},
	{"github.com/kubernetes-csi/", "CSI helpers stop at pkg/driver"},
	{"github.com/spf13/cobra", "command lines are the programs' business"},
}

// Floor of a package of this module (path below the module), and the entry it belongs to; "" when it belongs nowhere.
func floorOf(path string) (floor int, room string) {
	for p := path; p != "."; p = parent(p) {
		if f, ok := floors[p]; ok {
			return f, p
		}
	}
	return 0, ""
}

func outsideOf(path string) (outsideRule, bool) {
	for p := path; p != "."; p = parent(p) {
		if r, ok := outside[p]; ok {
			return r, true
		}
	}
	return outsideRule{}, false
}

func parent(path string) string {
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		return path[:i]
	}
	return "."
}

// Under says whether path is dir or lies below it.
func under(path, dir string) bool { return path == dir || strings.HasPrefix(path, dir+"/") }

func underAny(path string, dirs []string) bool {
	for _, d := range dirs {
		if under(path, d) {
			return true
		}
	}
	return false
}

// CheckImport says why the package from (path below the module) may not import to, or "".
func checkImport(from, to string) string {
	if r, ok := outsideOf(to); ok {
		if underAny(from, r.users) || under(from, parent2(to)) {
			return ""
		}
		if _, ok := outsideOf(from); ok {
			return ""
		}
		return "only these use it: " + strings.Join(append(r.users, "tests"), ", ") + " (" + r.reason + ")"
	}
	if _, ok := outsideOf(from); ok {
		return ""
	}
	ff, fromRoom := floorOf(from)
	tf, toRoom := floorOf(to)
	switch {
	case fromRoom == toRoom, under(from, toRoom) && !underAny(to, adapters):
		return "" // inside a package's own subtree
	case under(to, fromRoom) && tf <= ff && !isAdapter(to):
		return ""
	case isAdapter(to) && ff < top:
		return "adapters are imported by cmd and tests only: whoever imports one has chosen an environment"
	case tf < ff:
		return ""
	case ff == 0 && underAny(to, ground):
		return ""
	case ff == top && toRoom == "internal/cli":
		return ""
	}
	return "imports point down, or inside a package's own subtree"
}

func isAdapter(path string) bool { return underAny(path, adapters) }

// Parent2 is the outside entry that path belongs to: packages below one entry may import each other.
func parent2(path string) string {
	for p := path; p != "."; p = parent(p) {
		if _, ok := outside[p]; ok {
			return p
		}
	}
	return path
}
