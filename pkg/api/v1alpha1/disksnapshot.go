package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// DiskSnapshot is a point in a disk's past that stays readable and can be restored. Its name is the id that CSI calls the
// snapshot handle.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=vdsnap,categories=vmdk-csi
// +kubebuilder:selectablefield:JSONPath=`.spec.host`
// +kubebuilder:selectablefield:JSONPath=`.spec.disk`
// +kubebuilder:printcolumn:name="Ready",type=boolean,JSONPath=`.status.ready`
// +kubebuilder:printcolumn:name="Size",type=string,JSONPath=`.status.restoreSize`
// +kubebuilder:printcolumn:name="Disk",type=string,JSONPath=`.spec.disk`
// +kubebuilder:printcolumn:name="Datastore",type=string,JSONPath=`.spec.datastore`
// +kubebuilder:printcolumn:name="Consistency",type=string,JSONPath=`.status.consistency`
// +kubebuilder:printcolumn:name="Host",type=string,JSONPath=`.spec.host`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type DiskSnapshot struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   DiskSnapshotSpec   `json:"spec"`
	Status DiskSnapshotStatus `json:"status,omitempty"`
}

// DiskSnapshotSpec is what the controller wants.
type DiskSnapshotSpec struct {
	// Name is the container orchestrator's name of the snapshot, of 1 to 1024 bytes; "base64:..." when it is not UTF-8. The
	// object's name is its hash.
	//
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=1376
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="name is part of the snapshot's identity"
	Name string `json:"name"`
	// Disk is the name of the VirtualDisk.
	//
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="disk is part of the snapshot's identity"
	Disk string `json:"disk"`
	// Datastore that holds the disk.
	//
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="a snapshot lies beside its disk"
	Datastore string `json:"datastore"`
	// Host is the node that does the work.
	//
	// +kubebuilder:validation:MaxLength=253
	Host string `json:"host,omitempty"`
	// UUID of the disk when the snapshot was asked for, 32 hex digits: a disk of the same name that was made later has
	// another one.
	//
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="uuid is part of the snapshot's identity"
	UUID string `json:"uuid"`
	// Freeze is what is to stand still at the point in time; FreezeDeadlineSeconds how long that may take and last. A freeze
	// that does not come in time does not hinder the snapshot: status.consistency says what was reached.
	//
	// +kubebuilder:validation:Enum=none;filesystem
	// +kubebuilder:default=none
	Freeze string `json:"freeze,omitempty"`
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=60
	FreezeDeadlineSeconds int64 `json:"freezeDeadlineSeconds,omitempty"`
	// Attempt counts how often a failed operation was asked for again: raising it makes the host try at once.
	//
	// +kubebuilder:validation:Minimum=0
	Attempt int64 `json:"attempt,omitempty"`
}

// DiskSnapshotStatus is what is.
type DiskSnapshotStatus struct {
	// ObservedGeneration is the generation of the spec that this status answers.
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// Ready to be restored.
	Ready bool `json:"ready,omitempty"`
	// RestoreSizeBytes is the least capacity of a disk restored from it.
	RestoreSizeBytes int64 `json:"restoreSizeBytes,omitempty"`
	// RestoreSize is the same for people.
	RestoreSize string `json:"restoreSize,omitempty"`
	// CID of the link that holds its newest content.
	CID string `json:"cid,omitempty"`
	// CreationTime of the point in time, by the host's clock.
	CreationTime *metav1.Time `json:"creationTime,omitempty"`
	// Consistency of the content: what a power cut would leave (crash), or a frozen file system.
	//
	// +kubebuilder:validation:Enum=crash;filesystem
	Consistency string `json:"consistency,omitempty"`
	// Conditions: Ready, Deleted.
	//
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// DiskSnapshotList is a list of snapshots.
//
// +kubebuilder:object:root=true
type DiskSnapshotList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []DiskSnapshot `json:"items"`
}
