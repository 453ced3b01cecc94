// Package kubetest starts a real Kubernetes API (kube-apiserver and etcd as processes) for tests, with the project's
// custom resources installed.
//
// The programs come from the directories that VMDK_CSI_KUBE_BIN and VMDK_CSI_ETCD_BIN name, else from where
// hack/tools/build.sh puts them. Without them a test fails: it is never skipped silently.
//
// There are no controllers: Node objects are made by AddNodes, and nothing collects garbage. RBAC is on; As gives a
// client the rights that the chart gives to a service account, so that a missing rule fails a test.
//
// A Server owns its processes; Stop ends them and waits. It is for tests and imports controller-runtime's envtest.
package kubetest
