package vmdk

import (
	"context"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
)

// Check examines a link.
func Check(_ context.Context, d fsx.Dir, name string) (Report, error) { return Report{}, nil }
