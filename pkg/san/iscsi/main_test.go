package iscsi_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/internal/leaktest"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/iscsi"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/scsi"
)

// nodeVariable makes the test program a node that writes.
const nodeVariable = "VMDK_CSI_TEST_NODE"

type nodeConfig struct {
	Config iscsi.Config
	Fill   byte
}

func TestMain(m *testing.M) {
	if text := os.Getenv(nodeVariable); text != "" {
		if err := writeAsNode(text); err != nil {
			fmt.Println(fault.KindOf(err))
			os.Exit(1)
		}
		os.Exit(0)
	}
	leaktest.Main(m)
}

// writeAsNode registers key 0x1001 and writes one range again and again, a line for each write, until it fails.
func writeAsNode(text string) error {
	var c nodeConfig
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		return err
	}
	s, err := iscsi.Open(context.Background(), c.Config)
	if err != nil {
		return err
	}
	u, err := scsi.Open(context.Background(), s)
	if err != nil {
		return err
	}
	if err := u.Register(context.Background(), 0x1001, true); err != nil {
		return err
	}
	p := make([]byte, fenceRange)
	for n := byte(0); ; n++ {
		for i := range p {
			p[i] = c.Fill ^ n&1
		}
		if _, err := u.WriteAt(p, 0); err != nil {
			return err
		}
		fmt.Println("written")
	}
}
