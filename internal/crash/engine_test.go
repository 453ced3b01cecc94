package crash

import "github.com/vmdk-csi/vmdk-csi/pkg/volume"

func engine() volume.Engine { return volume.VMDK{} }
