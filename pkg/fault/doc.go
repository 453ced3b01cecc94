// Package fault is the vocabulary of failures that cross a package, a process or the API.
//
// A failure has a Kind (what a program decides on), a message (what went wrong, on which object) and a remedy (what a
// person does next). errors.Is(err, fault.NotFound) works through any number of wraps and across the wire, because a
// Fault marshals to JSON and back. gRPC codes are not known here: pkg/driver/errors.go maps kinds to codes.
//
// Floor 0: it imports only the standard library and x/sys.
package fault
