package host

import "context"

type datastoreKey struct{}

// WithDatastore returns a context that tells where the disk or snapshot of a call lies, for calls whose arguments do not say
// so. A host that is told asks that datastore only: one that does not answer holds up nothing on the others. It is a hint for
// who searches, never a condition: a host may look elsewhere too.
func WithDatastore(ctx context.Context, name string) context.Context {
	if name == "" {
		return ctx
	}
	return context.WithValue(ctx, datastoreKey{}, name)
}

// DatastoreFrom is the datastore that ctx tells, "" if it tells none.
func DatastoreFrom(ctx context.Context) string {
	name, _ := ctx.Value(datastoreKey{}).(string)
	return name
}
