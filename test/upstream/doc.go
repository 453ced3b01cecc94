// Package upstream runs Kubernetes' own tests of storage drivers (test/e2e/storage/external) against the driver on the
// kind cluster of test/cluster.
//
// drivers/ says what the driver can do, once for each scope of a datastore: node (ext4 by default, bound when a pod is
// scheduled) and shared (XFS, bound at once). Upstream's suite derives from that which tests there are. Nothing that the
// driver can do is left out there. A test that exists and is not run is in the table of deselect.go, with a reason and the
// condition under which the reason holds.
//
// Two ways to run it: the tests that named.txt names (part of `make test`), and all of them (`make test-upstream`), which
// writes docs/upstream-tests.md. Both fail when a name or a pattern fits no test: upstream renames tests.
//
// The test binary, ginkgo and the stand-ins for the images come from hack/tools/build.sh upstream and hack/images/build.sh
// upstream-tests. The code without build tag is tested with the unit tests; the runs need the tag e2e.
package upstream
