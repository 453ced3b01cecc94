package sim_test

import (
	"testing"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/internal/fsx/fsxtest"
	"github.com/vmdk-csi/vmdk-csi/internal/fsx/sim"
)

func TestConformance(t *testing.T) {
	fsxtest.Run(t, func(t *testing.T) fsx.Dir { return sim.New(sim.Options{}).Root() })
}
