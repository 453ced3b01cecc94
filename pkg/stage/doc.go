// Package stage is the port between the CSI node service, which speaks gRPC, and what makes a disk usable on a node.
//
// The words are the CSI specification's: to stage is to make a volume ready on a node once, to publish is to make it
// appear at one workload's path. pkg/node implements the port, pkg/driver calls it; neither knows the other, so that
// gRPC codes stay in one and mounts in the other.
//
// Floor 2 (a port). It imports the standard library only. Failures are pkg/fault's, with the kinds each method names.
package stage
