// Package driver is the CSI driver csi.vmdk-csi.io (specification 1.13.0): it checks requests, translates them to the ports
// pkg/host (the controller service) and pkg/stage (the node service), and translates answers and faults back.
//
// Layers, outermost first: the interceptors (panics, metrics, logs without secrets); the locking servers, which let one
// operation on a volume run at a time and answer others with ABORTED; the inner services, which validate and translate.
//
// A disk that the port keeps only for its snapshots (Retired) is no volume here: it is neither found nor listed. A volume with a
// source is where the source is, in its datastore, and of its size unless more is asked for; a request that is repeated
// finds its volume without looking at the source, which may be gone by then.
//
// Invariants: gRPC codes exist in errors.go alone. No state is kept between calls but the locks: idempotency is the
// ports'. A request is refused before anything is changed, with a message that names the field, its value and what is allowed.
//
// Goroutines: Serve's, which end when Serve returns. Locks: one internal/kmutex.Set a service, never waited for.
//
// Floor 5. It must not import an adapter, a disk format or a datastore's files (pkg/vmdk, internal/fsx), nor a Kubernetes
// client.
package driver
