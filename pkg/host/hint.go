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

type transportKey struct{}

// WithTransport returns a context that tells the order of transports by which the node will attach the disk of a claim: with NBD in it
// the node need not reach the datastore.
func WithTransport(ctx context.Context, order string) context.Context {
	if order == "" {
		return ctx
	}
	return context.WithValue(ctx, transportKey{}, order)
}

// TransportFrom is the order that ctx tells, "" if it tells none.
func TransportFrom(ctx context.Context) string {
	order, _ := ctx.Value(transportKey{}).(string)
	return order
}
