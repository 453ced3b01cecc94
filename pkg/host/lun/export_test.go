package lun

import "github.com/vmdk-csi/vmdk-csi/pkg/block"

// Device is a served disk.
func (w *Serving) Device() block.Device { return device{w} }
