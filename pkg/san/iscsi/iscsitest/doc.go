// Package iscsitest runs an iSCSI target for tests: tgtd of Debian's package tgt, as a process of its own on the loopback interface.
//
// VMDK_CSI_TGT names the directory where the test setup has unpacked the package; without it an installed one is used.
//
// A Target's process is ended and waited for when its test ends. Only tests import the package.
package iscsitest
