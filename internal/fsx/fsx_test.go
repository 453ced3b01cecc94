package fsx_test

import (
	"testing"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/internal/fsx/fsxtest"
)

func TestConformance(t *testing.T) {
	fsxtest.Run(t, func(t *testing.T) fsx.Dir { d, _ := root(t); return d })
}
