package lun_test

import (
	"testing"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/host/hosttest"
)

func subject(t *testing.T) hosttest.Subject {
	r := newRig(t)
	r.expiry = 20 * time.Second // nobody dies
	r.start("node-b").serve()
	return hosttest.Subject{Host: r.start("node-a"), Node: "node-a", Datastore: "lun", OtherDatastore: "a", Session: hosttest.NoKernel, Transports: []string{"san", "nbd"}}
}

func TestConforms(t *testing.T)         { hosttest.Run(t, subject) }
func TestSnapshotsConform(t *testing.T) { hosttest.RunSnapshots(t, subject) }
