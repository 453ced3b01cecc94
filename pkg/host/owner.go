package host

import "context"

// Owner is the object a disk is made for, as the orchestrator told: a PersistentVolumeClaim. It is for people (events,
// annotations), never part of a disk's identity, and so it travels in the context and not in a DiskSpec.
type Owner struct {
	Namespace string
	Name      string
}

type ownerKey struct{}

// WithOwner returns a context that carries the owner of the disk being made.
func WithOwner(ctx context.Context, o Owner) context.Context {
	if o.Namespace == "" || o.Name == "" {
		return ctx
	}
	return context.WithValue(ctx, ownerKey{}, o)
}

// OwnerFrom is the owner that ctx carries, if any.
func OwnerFrom(ctx context.Context) (Owner, bool) {
	o, ok := ctx.Value(ownerKey{}).(Owner)
	return o, ok
}
