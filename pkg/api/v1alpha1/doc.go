// Package v1alpha1 holds the Kubernetes objects of vmdk-csi, group vmdk-csi.io: Datastore (where disks live),
// VirtualDisk (one disk) and DiskSnapshot (a point in a disk's past). All are cluster-scoped.
//
// Who writes what:
//
//	spec    intent. A Datastore's is written by the chart or an administrator, the others' by the controller.
//	status  what is. Written by the node plugin of the host that does the work, by server-side apply with its own
//	        field managers; one host's entry in a list map is never touched by another host.
//
// The files on the datastore are the truth about content, the objects about intent: objects can be rebuilt from files.
//
// Floor 5, beside the adapter pkg/host/kube; it imports k8s.io/apimachinery only. zz_generated.deepcopy.go and the
// definitions in charts/vmdk-csi/crds are made by hack/generate.sh.
//
// +kubebuilder:object:generate=true
// +groupName=vmdk-csi.io
package v1alpha1
