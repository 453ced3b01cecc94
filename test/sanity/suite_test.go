package sanity

import (
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/kubernetes-csi/csi-test/v5/pkg/sanity"
	"github.com/onsi/ginkgo/v2"
	"github.com/onsi/ginkgo/v2/types"
	"github.com/onsi/gomega"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/vmdk-csi/vmdk-csi/pkg/host"
)

const mib = 1 << 20

// runBackend registers the whole suite twice, for both access types, and runs it against one backend.
func runBackend(t *testing.T, name string) {
	dir := t.TempDir()
	before := census(t)
	e := backends[name](t, dir)
	params := filesystem(t)
	var contexts []*sanity.TestContext
	for _, access := range []string{"mount", "block"} {
		config := sanity.NewTestConfig()
		config.Address, config.ControllerAddress = e.node, e.controller
		config.TestVolumeAccessType = access
		config.TestVolumeSize, config.TestVolumeExpandSize = 320*mib, 384*mib
		config.TestVolumeParameters = params
		config.StagingPath, config.TargetPath = filepath.Join(dir, access+"-staging"), filepath.Join(dir, access+"-target")
		config.IDGen = ids{}
		config.IdempotentCount = 3
		config.TestNodeVolumeAttachLimit = true
		config.DialOptions = append(config.DialOptions, grpc.WithChainUnaryInterceptor(sized))
		config.ControllerDialOptions = append(config.ControllerDialOptions, grpc.WithChainUnaryInterceptor(sized))
		ginkgo.Describe(access, func() { contexts = append(contexts, sanity.GinkgoTest(&config)) })
	}
	out, err := os.Create(os.Getenv(envReport))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	ginkgo.ReportAfterEach(func(r ginkgo.SpecReport) {
		if err := specOutcome(r).write(out); err != nil {
			ginkgo.Fail(err.Error())
		}
	})
	suite, reporter := ginkgo.GinkgoConfiguration()
	reporter.NoColor = true
	suite.RandomSeed = seed(t)
	gomega.RegisterFailHandler(ginkgo.Fail)
	ginkgo.RunSpecs(t, "csi-sanity "+name, suite, reporter)
	for _, sc := range contexts {
		sc.Finalize()
	}
	if err := e.stop(); err != nil {
		t.Errorf("stop: %v", err)
	}
	for _, left := range before.leaked(t) {
		t.Errorf("left behind in the namespace: %s", left)
	}
	if e.left != nil {
		if files, err := e.left(); err != nil || len(files) > 0 {
			t.Errorf("files left on the datastore: %v, %v", files, err)
		}
	}
}

// sized makes an answer look as if it had been sent itself. csi-sanity 5.6 compares a snapshot's topology with one that it sent
// by reflect.DeepEqual, which also sees the size that protobuf caches in a message when it is marshaled.
func sized(ctx context.Context, method string, req, resp any, c *grpc.ClientConn, invoke grpc.UnaryInvoker, o ...grpc.CallOption) error {
	err := invoke(ctx, method, req, resp, c, o...)
	if m, ok := resp.(proto.Message); ok && err == nil {
		_, err = proto.Marshal(m)
	}
	return err
}

func specOutcome(r ginkgo.SpecReport) outcome {
	o := outcome{Name: r.FullText(), State: r.State.String(), Reason: r.Failure.Message}
	if r.State == types.SpecStatePending {
		o = outcome{Name: o.Name, State: "skipped", Reason: "pending: csi-sanity has this spec disabled"}
	}
	if r.State.Is(types.SpecStateFailureStates) {
		o.Reason += "\n" + r.Failure.Location.String()
	}
	return o
}

func seed(t *testing.T) int64 {
	n := rand.Int64N(1 << 31)
	if s := os.Getenv("SEED"); s != "" {
		var err error
		if n, err = strconv.ParseInt(s, 10, 64); err != nil {
			t.Fatalf("SEED: %v", err)
		}
	}
	t.Logf("SEED=%d", n)
	return n
}

// filesystem says which file system can grow while mounted: ext4, the default, only with CAP_SYS_RESOURCE.
func filesystem(t *testing.T) map[string]string {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		t.Fatal(err)
	}
	params := map[string]string{}
	if data[0].Effective&(1<<unix.CAP_SYS_RESOURCE) == 0 {
		t.Log("no CAP_SYS_RESOURCE: xfs instead of ext4, which cannot grow while mounted here")
		params["csi.storage.k8s.io/fstype"] = "xfs"
	}
	return params
}

// ids are in the form of the driver's, so that what does not exist is looked for and not only refused.
type ids struct{}

func (ids) GenerateUniqueValidVolumeID() string {
	return host.DiskID("sanity-" + strconv.FormatUint(rand.Uint64(), 36))
}
func (ids) GenerateInvalidVolumeID() string   { return "../" + strings.Repeat("x", 40) }
func (ids) GenerateUniqueValidNodeID() string { return "node-" + strconv.FormatUint(rand.Uint64(), 36) }
func (ids) GenerateInvalidNodeID() string     { return "no/such node" }
