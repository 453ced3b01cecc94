module github.com/vmdk-csi/vmdk-csi/hack/images/sync

go 1.26.0
