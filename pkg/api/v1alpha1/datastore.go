package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// Datastore is a place where disks live: a directory on every node, one that all nodes share, or a LUN.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=vds,categories=vmdk-csi
// +kubebuilder:printcolumn:name="Kind",type=string,JSONPath=`.spec.kind`
// +kubebuilder:printcolumn:name="Scope",type=string,JSONPath=`.spec.scope`
// +kubebuilder:printcolumn:name="Ready Hosts",type=string,JSONPath=`.status.hosts[?(@.ready==true)].host`,priority=1
// +kubebuilder:printcolumn:name="Free",type=string,JSONPath=`.status.hosts[0].freeText`
// +kubebuilder:printcolumn:name="Total",type=string,JSONPath=`.status.hosts[0].totalText`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type Datastore struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   DatastoreSpec   `json:"spec"`
	Status DatastoreStatus `json:"status,omitempty"`
}

// DatastoreSpec says what the datastore is.
//
// +kubebuilder:validation:XValidation:rule="self.kind != 'lun' || self.scope == 'shared'",message="a LUN is shared: its scope is shared"
// +kubebuilder:validation:XValidation:rule="(self.kind == 'lun') == has(self.lun)",message="lun is for datastores of kind lun, and they need it"
type DatastoreSpec struct {
	// Kind: "directory" of a file system, or "lun", a store on a LUN whose blocks the nodes read and write themselves.
	//
	// +kubebuilder:validation:Enum=directory;lun
	// +kubebuilder:default=directory
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="a datastore's kind cannot change"
	Kind string `json:"kind,omitempty"`
	// Scope: "node" when every node has a directory of its own, "shared" when all nodes see the same files.
	//
	// +kubebuilder:validation:Enum=node;shared
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="a datastore's scope cannot change: its disks were placed by it"
	Scope string `json:"scope"`
	// Path of the datastore's directory on the nodes, for people: vmdk-hostd is told the path on its command line.
	Path string `json:"path,omitempty"`
	// LUN of a datastore of kind lun, for people as well.
	LUN *DatastoreLUN `json:"lun,omitempty"`
}

// DatastoreLUN says which LUN holds the disks.
type DatastoreLUN struct {
	// Path of the block device or file on the nodes, or an iscsi:// address.
	//
	// +kubebuilder:validation:MinLength=1
	Path string `json:"path"`
	// Fencing keeps a node that lost its right to the LUN from writing: by the array's persistent reservations, or by
	// leases alone, which trust that node's clock and kernel.
	//
	// +kubebuilder:validation:Enum=reservations;lease-only
	// +kubebuilder:default=reservations
	Fencing string `json:"fencing,omitempty"`
}

// DatastoreStatus is what the hosts say about the datastore.
type DatastoreStatus struct {
	// Hosts that know the datastore.
	//
	// +listType=map
	// +listMapKey=host
	Hosts []DatastoreHostStatus `json:"hosts,omitempty"`
}

// DatastoreHostStatus is one host's view of the datastore.
type DatastoreHostStatus struct {
	// Host is the node's name.
	Host string `json:"host"`
	// Ready says whether the host can make and open disks there.
	Ready bool `json:"ready"`
	// Reason why it is not ready, with the remedy.
	Reason string `json:"reason,omitempty"`
	// TotalBytes and FreeBytes of the file system that holds the datastore.
	TotalBytes int64 `json:"totalBytes"`
	FreeBytes  int64 `json:"freeBytes"`
	// TotalText and FreeText are the same for people.
	TotalText string `json:"totalText,omitempty"`
	FreeText  string `json:"freeText,omitempty"`
	// Transports by which the host can reach the disks, and why it cannot by the others.
	//
	// +listType=map
	// +listMapKey=transport
	Transports []TransportStatus `json:"transports,omitempty"`
	// ObservedTime is when the host looked, by its own clock. For display: no decision is made on it, because two
	// machines' clocks are never compared.
	ObservedTime metav1.Time `json:"observedTime,omitempty"`
}

// TransportStatus is what a host can do with a datastore by one transport.
type TransportStatus struct {
	// Transport is san, hotadd or nbd.
	Transport string `json:"transport"`
	// Usable says whether disks can be reached by it.
	Usable bool `json:"usable"`
	// Reason why not, with the remedy.
	Reason string `json:"reason,omitempty"`
}

// DatastoreList is a list of datastores.
//
// +kubebuilder:object:root=true
type DatastoreList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []Datastore `json:"items"`
}
