package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// VirtualDisk is one disk: a chain of VMDK links on a datastore. Its name is the id that CSI calls the volume handle.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=vdisk;vd,categories=vmdk-csi
// +kubebuilder:selectablefield:JSONPath=`.spec.host`
// +kubebuilder:selectablefield:JSONPath=`.spec.datastore`
// +kubebuilder:printcolumn:name="Phase",type=string,JSONPath=`.status.phase`
// +kubebuilder:printcolumn:name="Size",type=string,JSONPath=`.status.size`
// +kubebuilder:printcolumn:name="Used",type=string,JSONPath=`.status.used`
// +kubebuilder:printcolumn:name="Datastore",type=string,JSONPath=`.spec.datastore`
// +kubebuilder:printcolumn:name="Type",type=string,JSONPath=`.spec.diskType`
// +kubebuilder:printcolumn:name="Format",type=string,JSONPath=`.spec.diskFormat`,priority=1
// +kubebuilder:printcolumn:name="Host",type=string,JSONPath=`.spec.host`,priority=1
// +kubebuilder:printcolumn:name="Node",type=string,JSONPath=`.status.attachments[0].host`
// +kubebuilder:printcolumn:name="Transport",type=string,JSONPath=`.status.attachments[0].transport`
// +kubebuilder:printcolumn:name="Slot",type=string,JSONPath=`.status.attachments[0].slot`,priority=1
// +kubebuilder:printcolumn:name="Snapshots",type=string,JSONPath=`.status.snapshots`,priority=1
// +kubebuilder:printcolumn:name="Claim",type=string,JSONPath=`.metadata.annotations.vmdk-csi\.io/pvc-name`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type VirtualDisk struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   VirtualDiskSpec   `json:"spec"`
	Status VirtualDiskStatus `json:"status,omitempty"`
}

// VirtualDiskSpec is what the controller wants.
//
// +kubebuilder:validation:XValidation:rule="self.sizeBytes >= self.initialSizeBytes",message="a disk never shrinks"
// +kubebuilder:validation:XValidation:rule="has(self.source) == has(oldSelf.source)",message="source is part of the disk's identity"
// +kubebuilder:validation:XValidation:rule="has(self.source) || !has(self.cloneMode)",message="cloneMode is how a source is taken over"
type VirtualDiskSpec struct {
	// Name is the container orchestrator's name of the volume, of 1 to 1024 bytes; "base64:..." when it is not UTF-8. The
	// object's name is its hash.
	//
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=1376
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="name is part of the disk's identity"
	Name string `json:"name"`
	// Datastore is the name of the Datastore that holds the files.
	//
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="a disk does not move between datastores"
	Datastore string `json:"datastore"`
	// Host is the node that does the work on this disk. The controller changes it for a shared datastore only.
	//
	// +kubebuilder:validation:MaxLength=253
	Host string `json:"host,omitempty"`
	// SizeBytes is the wanted capacity; it only grows.
	//
	// +kubebuilder:validation:Minimum=1048576
	// +kubebuilder:validation:XValidation:rule="self >= oldSelf",message="a disk never shrinks"
	SizeBytes int64 `json:"sizeBytes"`
	// InitialSizeBytes is the capacity that the disk was asked with: part of its identity, so that a repeated request
	// is recognized after an expansion.
	//
	// +kubebuilder:validation:Minimum=1048576
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="initialSizeBytes is part of the disk's identity"
	InitialSizeBytes int64 `json:"initialSizeBytes"`
	// DiskFormat is how space is reserved.
	//
	// +kubebuilder:validation:Enum=thin;zeroedthick;eagerzeroedthick
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="diskFormat is part of the disk's identity"
	DiskFormat string `json:"diskFormat"`
	// DiskType is the createType of the base link's descriptor.
	//
	// +kubebuilder:validation:Enum=monolithicFlat;twoGbMaxExtentSparse;monolithicSparse;twoGbMaxExtentFlat;vmfs;vmfsSparse
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="diskType is part of the disk's identity"
	DiskType string `json:"diskType"`
	// Source is what the disk's first content comes from; none means zeros.
	//
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="source is part of the disk's identity"
	Source *DiskSource `json:"source,omitempty"`
	// CloneMode is how the source's content is taken over: linked shares the source's links, full copies everything.
	//
	// +kubebuilder:validation:Enum=linked;full
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="cloneMode is part of the disk's identity"
	CloneMode string `json:"cloneMode,omitempty"`
	// Claims are the nodes that may attach the disk.
	//
	// +listType=map
	// +listMapKey=node
	// +kubebuilder:validation:MaxItems=1000
	Claims []DiskClaim `json:"claims,omitempty"`
	// Evict are nodes that are down, by the taint node.kubernetes.io/out-of-service or because their Node is gone: the host takes the
	// disk from them, and then their names out of this list. Only disks on LUNs can be taken.
	//
	// +listType=set
	// +kubebuilder:validation:MaxItems=1000
	// +kubebuilder:validation:items:MaxLength=253
	Evict []string `json:"evict,omitempty"`
	// Attempt counts how often a failed operation was asked for again: raising it makes the host try at once.
	//
	// +kubebuilder:validation:Minimum=0
	Attempt int64 `json:"attempt,omitempty"`
}

// DiskSource names a snapshot or a disk; exactly one.
//
// +kubebuilder:validation:XValidation:rule="has(self.snapshot) != has(self.disk)",message="exactly one of snapshot and disk"
type DiskSource struct {
	// Snapshot is the name of a DiskSnapshot.
	//
	// +kubebuilder:validation:MaxLength=253
	Snapshot string `json:"snapshot,omitempty"`
	// Disk is the name of a VirtualDisk.
	//
	// +kubebuilder:validation:MaxLength=253
	Disk string `json:"disk,omitempty"`
}

// DiskClaim is a node's right to attach the disk.
type DiskClaim struct {
	// Node is the node's name.
	//
	// +kubebuilder:validation:MaxLength=253
	Node string `json:"node"`
	// ReadOnly: several nodes may have read-only claims, one alone a writing one.
	ReadOnly bool `json:"readOnly,omitempty"`
}

// VirtualDiskStatus is what is, by the word of the host that does the work.
type VirtualDiskStatus struct {
	// ObservedGeneration is the generation of the spec that this status answers.
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// Phase in the disk's life. Retired: deleted as a volume, kept because snapshots need its links.
	//
	// +kubebuilder:validation:Enum=Pending;Creating;Ready;Failed;Deleting;Retired
	Phase string `json:"phase,omitempty"`
	// UUID is ddb.uuid, 32 hex digits. Once it is set the disk is never made again.
	UUID string `json:"uuid,omitempty"`
	// SizeBytes is the capacity now.
	SizeBytes int64 `json:"sizeBytes,omitempty"`
	// UsedBytes is what the files take on the datastore.
	UsedBytes int64 `json:"usedBytes,omitempty"`
	// Size and Used are the same for people.
	Size string `json:"size,omitempty"`
	Used string `json:"used,omitempty"`
	// Links of the chain, base first.
	//
	// +listType=atomic
	Links []DiskLink `json:"links,omitempty"`
	// Attachments: where the disk is open. Every host writes its own entry.
	//
	// +listType=map
	// +listMapKey=host
	Attachments []DiskAttachment `json:"attachments,omitempty"`
	// Snapshots of this disk, by the names of their DiskSnapshots. While there is one a deleted disk stays, Retired.
	//
	// +listType=atomic
	Snapshots []string `json:"snapshots,omitempty"`
	// Consolidation of links that nobody needs; absent when there are none and nothing runs.
	Consolidation *DiskConsolidation `json:"consolidation,omitempty"`
	// Conditions: Ready, Attached, DatastoreReady, Expanded, Deleted, VMwareReadable, Consolidating.
	//
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// DiskLink is one link of a disk's chain.
type DiskLink struct {
	// Name of the descriptor's file.
	Name string `json:"name"`
	// Type is the descriptor's createType.
	Type string `json:"type"`
	// CID and ParentCID bind a child to its parent.
	CID       string `json:"cid"`
	ParentCID string `json:"parentCID"`
	// SizeBytes is the link's capacity.
	SizeBytes int64 `json:"sizeBytes"`
	// AllocatedBytes is what its files take on the datastore.
	AllocatedBytes int64 `json:"allocatedBytes"`
}

// DiskConsolidation is what merging of a disk's unneeded links is about. While a merge runs it is written every few seconds.
type DiskConsolidation struct {
	// Links that nobody needs and that are not merged yet.
	Links int32 `json:"links"`
	// Running says that a merge is under way; DoneBytes of TotalBytes are copied.
	Running    bool  `json:"running,omitempty"`
	DoneBytes  int64 `json:"doneBytes,omitempty"`
	TotalBytes int64 `json:"totalBytes,omitempty"`
	// FreedBytes is what merges have given back to the datastore since the host's vmdk-hostd started.
	FreedBytes int64 `json:"freedBytes,omitempty"`
	// Reason why it waits.
	Reason string `json:"reason,omitempty"`
}

// DiskAttachment is a disk that is open on a host.
type DiskAttachment struct {
	// Host is the node's name.
	Host string `json:"host"`
	// Slot on the host's SCSI bus, "controller:unit".
	Slot string `json:"slot"`
	// Transport by which the host reaches the bytes now.
	Transport string `json:"transport"`
	// SkippedTransports were asked for before Transport and do not serve now.
	//
	// +listType=map
	// +listMapKey=transport
	SkippedTransports []SkippedTransport `json:"skippedTransports,omitempty"`
	// ReadOnly: the host cannot write.
	ReadOnly bool `json:"readOnly,omitempty"`
	// Epoch of the owner in the disk's manifest; 0 for read-only.
	Epoch int64 `json:"epoch,omitempty"`
	// Since when, by the host's clock.
	Since metav1.Time `json:"since"`
	// WorkerPID is the process that serves the disk; Restarts how often it was replaced since the attach.
	WorkerPID int64 `json:"workerPID"`
	Restarts  int64 `json:"restarts"`
}

// SkippedTransport is a transport that was asked for and does not serve.
type SkippedTransport struct {
	// Transport is san, hotadd or nbd.
	Transport string `json:"transport"`
	// Reason why, with the remedy.
	Reason string `json:"reason"`
}

// VirtualDiskList is a list of disks.
//
// +kubebuilder:object:root=true
type VirtualDiskList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []VirtualDisk `json:"items"`
}
