// Package hostd is what the program vmdk-hostd is made of: its command line, the wiring of the local host to the
// supervisor of workers, its socket, the take-over from a predecessor, health and metrics.
//
// Start: the state files, the supervisor, the datastores (one that is missing is tried again), the disks of a predecessor
// (one at a time, each served here before the next is asked for), the socket, which takes the predecessor's name, then
// /readyz. Stop, on SIGTERM: the socket (calls that run may finish), then the workers, whose disks whoever holds their
// descriptors brings to the next hostd. Every goroutine belongs to one errgroup that Run waits for.
//
// With datastores on LUNs (host/lun) it also listens for the other hosts of those LUNs (pkg/remote), who know each other by certificates
// that each issues itself from one authority, and tries to own each LUN once it listens. A predecessor in the same network has the
// ports, and the LUN, until it ends. Workers of disks on LUNs are told when other hosts get other addresses, or this one another certificate.
//
// With an authority it lends disks in its directories to those hosts, LUNs or not, and its node may have theirs (host/lun).
//
// Top floor: it is imported by cmd alone and imports adapters.
package hostd
