package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// GroupVersion of the objects.
var GroupVersion = schema.GroupVersion{Group: "vmdk-csi.io", Version: "v1alpha1"}

// AddToScheme teaches a scheme the objects.
func AddToScheme(s *runtime.Scheme) error {
	s.AddKnownTypes(GroupVersion,
		&Datastore{}, &DatastoreList{},
		&VirtualDisk{}, &VirtualDiskList{},
		&DiskSnapshot{}, &DiskSnapshotList{},
	)
	metav1.AddToGroupVersion(s, GroupVersion)
	return nil
}

// Names that objects carry in their metadata.
const (
	// Finalizer keeps an object until its host has removed the files.
	Finalizer = "vmdk-csi.io/files"
	// AnnotationPVCNamespace and AnnotationPVCName name the claim the disk was made for, when it is known.
	AnnotationPVCNamespace = "vmdk-csi.io/pvc-namespace"
	AnnotationPVCName      = "vmdk-csi.io/pvc-name"
	// LabelDatastore has the datastore's name, so that `kubectl get vdisk -l` can select by it.
	LabelDatastore = "vmdk-csi.io/datastore"
)

// Condition types of VirtualDisk and DiskSnapshot. A false condition's reason is a kind of pkg/fault.
const (
	// ConditionReady: the disk exists and its manifest and chain are sound.
	ConditionReady = "Ready"
	// ConditionAttached: a host has the disk open.
	ConditionAttached = "Attached"
	// ConditionDatastoreReady: the host that does the work reaches the disk's datastore.
	ConditionDatastoreReady = "DatastoreReady"
	// ConditionExpanded: the disk has the capacity that its spec asks for.
	ConditionExpanded = "Expanded"
	// ConditionDeleted: False while a deletion cannot finish; the message says what to do.
	ConditionDeleted = "Deleted"
	// ConditionVMwareReadable: VMware accepts the chain as it is (False: a capacity step in it).
	ConditionVMwareReadable = "VMwareReadable"
	// ConditionConsolidating: links that nobody needs are being merged (False: there are some, and they wait).
	ConditionConsolidating = "Consolidating"
)
