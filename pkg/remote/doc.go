// Package remote lets a node use disks of a datastore that another host has open: the control protocol, both ends of it, and
// the disk of a client, which changes between the LUN itself and NBD while it is used.
//
// Floor 3: it joins pkg/nbd and pkg/san, and knows no disk format.
package remote
