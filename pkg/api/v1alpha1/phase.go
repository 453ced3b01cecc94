package v1alpha1

// Phases of a disk.
const (
	PhasePending  = "Pending"  // asked for; no host has answered
	PhaseCreating = "Creating" // a host makes it
	PhaseReady    = "Ready"    // can be attached
	PhaseFailed   = "Failed"   // cannot be made, or is damaged; condition Ready says why
	PhaseDeleting = "Deleting" // a host removes its files
	PhaseRetired  = "Retired"  // deleted as a volume, kept because snapshots need its links
)

// Scopes of a datastore.
const (
	ScopeNode   = "node"
	ScopeShared = "shared"
)

// Kinds of a datastore.
const (
	KindDirectory = "directory"
	KindLUN       = "lun"
)
