package vmdkctl

import (
	"strings"

	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
)

// NumberedTypes are the disk types of vmware-vdiskmanager -t, by number.
var numberedTypes = []struct {
	typ    vmdk.Type
	format vmdk.Format
}{
	{vmdk.MonolithicSparse, vmdk.Thin},               // 0: single growable virtual disk
	{vmdk.TwoGbMaxExtentSparse, vmdk.Thin},           // 1: growable virtual disk split into multiple files
	{vmdk.MonolithicFlat, vmdk.EagerZeroedThick},     // 2: preallocated virtual disk
	{vmdk.TwoGbMaxExtentFlat, vmdk.EagerZeroedThick}, // 3: preallocated virtual disk split into multiple files
	{vmdk.VMFS, vmdk.EagerZeroedThick},               // 4: preallocated ESX-type virtual disk
	{vmdk.StreamOptimized, vmdk.Thin},                // 5: compressed disk optimized for streaming
	{vmdk.VMFS, vmdk.Thin},                           // 6: thin provisioned virtual disk - ESX 3.x and above
}

// TypeByNumber is what a number from 0 to 6 stands for.
func typeByNumber(s string) (vmdk.Type, vmdk.Format, bool) {
	if len(s) != 1 || s[0] < '0' || s[0] > '6' {
		return "", "", false
	}
	t := numberedTypes[s[0]-'0']
	return t.typ, t.format, true
}

// Resolve makes names of what the flag --type or --to has, whatever its case: a createType, or a number of vmware-vdiskmanager, which says
// how space is taken, too, unless --format does.
func (s *shape) resolve(formatGiven bool) {
	if t, f, ok := typeByNumber(s.diskType); ok {
		s.diskType = string(t)
		if !formatGiven {
			s.format = string(f)
		}
	}
	for _, t := range convertTypes {
		if strings.EqualFold(s.diskType, t) {
			s.diskType = t
		}
	}
}
