//go:build cgo

package takeover

// withCgo: a program with cgo cannot put all its threads behind Landlock, so the processes under test are built without.
const withCgo = true
