package upstream

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/vmdk-csi/vmdk-csi/test/cluster"
)

// capabilities are those of k8s.io/kubernetes/test/e2e/storage/framework/testdriver.go. Its reader ignores a name that it does
// not know, so a typo would silently take tests away.
var capabilities = []string{"persistence", "block", "fsGroup", "exec", "snapshotDataSource", "pvcDataSource", "multipods", "RWX",
	"controllerExpansion", "nodeExpansion", "offlineExpansion", "onlineExpansion", "volumeLimits", "singleNodeVolume", "topology",
	"capacity", "readWriteOncePod", "multiplePVsSameID", "capReadOnlyMany"}

func TestDriversDeclareEveryCapability(t *testing.T) {
	for name, want := range map[string]map[string]bool{
		"node.yaml":   {"RWX": false, "singleNodeVolume": true, "topology": true},
		"shared.yaml": {"RWX": false, "singleNodeVolume": false, "topology": false, "capacity": false},
	} {
		b, err := os.ReadFile(filepath.Join("drivers", name))
		if err != nil {
			t.Fatal(err)
		}
		var d struct {
			StorageClass, SnapshotClass struct{ FromExistingClassName string }
			DriverInfo                  struct{ Capabilities map[string]bool }
		}
		if err := yaml.Unmarshal(b, &d); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for _, c := range capabilities {
			has, declared := d.DriverInfo.Capabilities[c]
			expected, special := want[c]
			if !declared || has != (expected || !special) {
				t.Errorf("%s: capability %s is %v, declared %v", name, c, has, declared)
			}
		}
		for c := range d.DriverInfo.Capabilities {
			if !slices.Contains(capabilities, c) {
				t.Errorf("%s: there is no capability %q", name, c)
			}
		}
		classes, err := os.ReadFile("drivers/classes.yaml")
		if err != nil {
			t.Fatal(err)
		}
		if c := d.StorageClass.FromExistingClassName; !strings.Contains(string(classes), "metadata: {name: "+c+"}") {
			t.Errorf("%s: classes.yaml has no class %q", name, c)
		}
		if !strings.Contains(string(classes), "values: ["+cluster.Name+"-worker]") {
			t.Errorf("classes.yaml names no node of cluster %s", cluster.Name)
		}
	}
}

func TestNamedTests(t *testing.T) {
	names := Named()
	if len(names) < 15 {
		t.Errorf("%d tests are named", len(names))
	}
	for i, n := range names {
		if slices.Contains(names[:i], n) {
			t.Errorf("named twice: %s", n)
		}
		if !strings.HasPrefix(n, suitePrefix+"[Driver: csi.vmdk-csi.io-") {
			t.Errorf("not the full name of a storage test: %s", n)
		}
		if strings.Contains(n, "  ") {
			t.Errorf("no full name has two blanks: %s", n)
		}
		for _, d := range deselections {
			if d.Fits(n) {
				t.Errorf("named, and deselected on some machines: %s", n)
			}
		}
		asGinkgo := "suite " + n
		if !regexp.MustCompile(exactly(n)).MatchString(n) || !regexp.MustCompile(exactly(n)).MatchString(asGinkgo) || regexp.MustCompile(exactly(n)).MatchString(n+" twice") {
			t.Errorf("the pattern of %s does not fit it alone", n)
		}
	}
}

func TestDeselectionHoldsOnlyWhereTheReasonIsTrue(t *testing.T) {
	const online = suitePrefix + "[Driver: csi.vmdk-csi.io-node] [Testpattern: Dynamic PV (default fs)(allowExpansion)] " +
		"volume-expand should resize volume when PVC is edited while pod is using it"
	fits := func(m Machine, name string) bool {
		return slices.ContainsFunc(Deselected(m), func(d Deselection) bool { return d.Fits(name) })
	}
	if !fits(Machine{}, online) {
		t.Error("ext4 online growth is selected without CAP_SYS_RESOURCE")
	}
	if fits(Machine{SysResource: true}, online) {
		t.Error("ext4 online growth is deselected with CAP_SYS_RESOURCE")
	}
	if onXFS := strings.Replace(online, "io-node", "io-shared", 1); fits(Machine{}, onXFS) {
		t.Error("XFS online growth is deselected")
	}
	if got := Deselected(Machine{SysResource: true, SELinux: true, Registry: true}); len(got) != 0 {
		t.Errorf("a machine that lacks nothing deselects %v", got)
	}
}

func TestBoundingSet(t *testing.T) {
	got, err := boundingSet("Name:\tx\nCapPrm:\t0\nCapBnd:\t000001fffeffffff\nCapAmb:\t0\n")
	if err != nil || got>>24&1 != 0 || got>>21&1 != 1 {
		t.Errorf("%x, %v", got, err)
	}
	if _, err := boundingSet("Name:\tx\n"); err == nil {
		t.Error("no CapBnd, no error")
	}
}

const reportJSON = `[{"SpecReports":[
 {"LeafNodeType":"It","ContainerHierarchyTexts":["External Storage","[Driver: csi.vmdk-csi.io-node]","a",""],"LeafNodeText":"passes","State":"passed","RunTime":2000000000},
 {"LeafNodeType":"It","ContainerHierarchyTexts":["External Storage","[Driver: csi.vmdk-csi.io-node]","a"],"LeafNodeText":"is not selected","State":"skipped"},
 {"LeafNodeType":"It","ContainerHierarchyTexts":["External Storage","[Driver: csi.vmdk-csi.io-node]","a"],"LeafNodeText":"skips itself","State":"skipped","Failure":{"Message":"no VAC - skipping"}},
 {"LeafNodeType":"It","ContainerHierarchyTexts":["External Storage","[Driver: csi.vmdk-csi.io-node]","a"],"LeafNodeText":"fails [Feature:SELinux]","State":"failed","Failure":{"Message":"pod\nwas late"},"CapturedGinkgoWriterOutput":"one\ntwo\n"},
 {"LeafNodeType":"It","ContainerHierarchyTexts":["External Storage","[Driver: csi.vmdk-csi.io-node]","a"],"LeafNodeText":"hangs","State":"timedout"},
 {"LeafNodeType":"It","ContainerHierarchyTexts":["[sig-node] Pods"],"LeafNodeText":"is not storage","State":"passed"},
 {"LeafNodeType":"SynchronizedBeforeSuite","State":"failed","Failure":{"Message":"no cluster"}}]}]`

func TestReport(t *testing.T) {
	file := filepath.Join(t.TempDir(), "report.json")
	if err := os.WriteFile(file, []byte(reportJSON), 0o600); err != nil {
		t.Fatal(err)
	}
	specs, err := readReport(file)
	if err != nil {
		t.Fatal(err)
	}
	if n := suitePrefix + "[Driver: csi.vmdk-csi.io-node] a passes"; !slices.ContainsFunc(specs, func(s Spec) bool { return s.Name == n }) {
		t.Errorf("a container without a text: no test is called %q", n)
	}
	r := Result{Specs: specs, Date: time.Unix(0, 0), Kubernetes: "v1"}
	if p, f, s := r.count(); p != 1 || f != 3 || s != 2 {
		t.Errorf("%d passed, %d failed, %d skipped of %+v", p, f, s, specs)
	}
	if _, unexplained := r.skipped(); len(unexplained) != 1 || !strings.HasSuffix(unexplained[0], "is not selected") {
		t.Errorf("unexplained: %q", unexplained)
	}
	var b bytes.Buffer
	if err := r.WriteMarkdown(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"1 passed, 3 failed, 2 not run", "- `[node] a fails [Feature:SELinux]`: pod\n",
		"upstream: no VAC - skipping\n\n- `[node] a skips itself`\n", "the run was not complete.\n\n- `[node] a is not selected`\n", "| 2 | `[node] a passes` |"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("the page lacks %q:\n%s", want, b.String())
		}
	}
	if err := os.WriteFile(file, []byte(`[{"SpecReports":[]}]`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := readReport(file); err == nil {
		t.Error("a report without a test is no error")
	}
}

func TestMergeTakesTheRunThatRan(t *testing.T) {
	skipped := func(name, reason string) Spec { return Spec{Name: name, State: "skipped", Reason: reason} }
	got := merge(
		[]Spec{{Name: "a", State: "passed"}, skipped("b", ""), skipped("c", ""), skipped("d", "")},
		[]Spec{skipped("a", ""), {Name: "b", State: "failed"}, skipped("c", "no ssh"), skipped("d", ""), {Name: "AfterSuite", State: "failed"}})
	want := []Spec{{Name: "a", State: "passed"}, {Name: "b", State: "failed"}, skipped("c", "no ssh"), skipped("d", ""),
		{Name: "AfterSuite", State: "failed"}}
	if !slices.Equal(got, want) {
		t.Errorf("merged\n%+v\nwant\n%+v", got, want)
	}
}
