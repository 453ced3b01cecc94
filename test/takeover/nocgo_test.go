//go:build !cgo

package takeover

const withCgo = false
