// Package cluster is the kind cluster with the driver that the suites e2e and upstream use: one control plane and two
// workers, beside the demo's cluster and never in its place.
//
// Up may be called at any time: what is there and current is kept. Who called Up calls Down, unless somebody else is
// told to (Given): the runner of the suites brings the cluster up while other suites run, and removes it after the last
// suite that uses it. Nothing here starts a goroutine or holds a lock; hack/kind/up.sh and down.sh wait for each other.
package cluster
