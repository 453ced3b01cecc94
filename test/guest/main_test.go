package guest

import (
	"testing"

	"github.com/vmdk-csi/vmdk-csi/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }
