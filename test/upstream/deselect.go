package upstream

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/vmdk-csi/vmdk-csi/test/cluster"
)

// Machine is what the reasons of deselections are about.
type Machine struct {
	SysResource bool // root has CAP_SYS_RESOURCE
	SELinux     bool // the kernel has SELinux
	Registry    bool // images can be pulled
}

// ThisMachine looks at the machine that this process runs on, whose kernel is also the nodes'.
func ThisMachine() (Machine, error) {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return Machine{}, fmt.Errorf("read this process's capabilities: %w", err)
	}
	const sysResource = 24 // capabilities(7), linux/capability.h
	bounding, err := boundingSet(string(b))
	if err != nil {
		return Machine{}, err
	}
	_, err = os.Stat("/sys/fs/selinux/enforce")
	// hack/kind/up.sh wrote down which sort of machine it found; "stock" pulls its images.
	sort, _ := os.ReadFile(filepath.Join(cluster.StateDir(), "machine"))
	return Machine{SysResource: bounding>>sysResource&1 == 1, SELinux: err == nil, Registry: strings.TrimSpace(string(sort)) == "stock"}, nil
}

func boundingSet(status string) (uint64, error) {
	_, after, _ := strings.Cut(status, "\nCapBnd:")
	line, _, _ := strings.Cut(after, "\n")
	set, err := strconv.ParseUint(strings.TrimSpace(line), 16, 64)
	if err != nil {
		return 0, fmt.Errorf("CapBnd in /proc/self/status: %w", err)
	}
	return set, nil
}

// Deselection is a group of tests that are not run.
type Deselection struct {
	// Pattern fits the tests' full names, as ginkgo's --skip does.
	Pattern string
	Reason  string
	// Holds tells whether the reason is true here.
	Holds func(Machine) bool
}

var deselections = []Deselection{
	{
		Pattern: `\[Driver: csi\.vmdk-csi\.io-node\].*(` +
			`Dynamic PV \(default fs\)\(allowExpansion\)\] volume-expand should resize volume when PVC is edited while pod is using it` +
			`|Generic Ephemeral-volume \(default fs\) .*should support expansion of pvcs created for ephemeral pvcs)`,
		Reason: "ext4 grows online only with CAP_SYS_RESOURCE (the kernel's ext4_ioctl_resize asks for it), which this machine's root lacks; " +
			"the same tests run on XFS with scope shared",
		Holds: func(m Machine) bool { return !m.SysResource },
	},
	{
		Pattern: `\[Feature:SELinux\]`,
		Reason:  "the kernel of this machine has no SELinux",
		Holds:   func(m Machine) bool { return !m.SELinux },
	},
	{
		Pattern: `should provision storage with any volume data source`,
		Reason: "it deploys upstream's volume populator from registry.k8s.io/sig-storage; this machine reaches no registry, and it is no Go module; " +
			"the driver has no part in it (the populator makes an ordinary claim)",
		Holds: func(m Machine) bool { return !m.Registry },
	},
}

// Deselected are those whose reason holds on m.
func Deselected(m Machine) []Deselection {
	var out []Deselection
	for _, d := range deselections {
		if d.Holds(m) {
			out = append(out, d)
		}
	}
	return out
}

// Fits tells whether the test with this full name is among them.
func (d Deselection) Fits(name string) bool { return regexp.MustCompile(d.Pattern).MatchString(name) }
