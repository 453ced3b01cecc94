// Package wire carries the port pkg/host over a unix socket: Serve in hostd, Client in the node service, in a controller
// that runs beside hostd without Kubernetes, and in a hostd that succeeds another.
//
// # Protocol
//
// A stream socket. A frame is a length (4 bytes, big endian, at most MaxFrame) and that many bytes of JSON. Descriptors
// travel as SCM_RIGHTS beside the length; the JSON says how many they are and which is which by position (unix(7)).
//
//	client: hello{version}          server: hello{version}, or a fault and the end
//	client: request{method, ...}    server: response{result or fault}      any number of times, one after the other
//
// Concurrent requests use several connections, which the client keeps for reuse. A request carries the time that is left
// of its deadline, not the deadline: two processes' clocks may differ by namespace or leap. The end of the connection
// cancels the request that runs on it. Handover answers with one response per disk, each acknowledged by the client, so
// that a disk is always in the hands of at least one process.
//
// The version changes when old and new would misunderstand each other: then neither can take the other's disks over. What
// an older side does not know is therefore a method of its own, which it refuses (Unsupported).
//
// Who may connect is checked by SO_PEERCRED: the own effective uid, root, and those of Options.UIDs.
//
// # Ownership of descriptors
//
// A descriptor that is sent stays the sender's. A received one belongs to the receiver exactly once: in the server to the
// request, which closes it when the handler has returned; in the client to the caller if the call succeeds, else it is
// closed. A frame that carries another number of descriptors than it says ends the connection.
//
// # Goroutines and locks
//
// Serve owns one goroutine per connection, and during a request one that watches for the connection's end; it waits for
// all of them before it returns. Client starts a goroutine during a call, which the call waits for. Client.mu guards
// the idle connections and is not held during I/O.
//
// Floor 5. Besides pkg/host, pkg/fault and internal/sys it imports nothing of this module.
package wire
