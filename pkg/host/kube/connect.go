package kube

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/vmdk-csi/vmdk-csi/pkg/api/v1alpha1"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// NewScheme knows the objects that this package reads and writes.
func NewScheme() (*runtime.Scheme, error) {
	s := runtime.NewScheme()
	if err := corev1.AddToScheme(s); err != nil {
		return nil, err
	}
	return s, v1alpha1.AddToScheme(s)
}

// Connect makes a client that reads through the API server. It does not speak to the server yet.
func Connect(config *rest.Config) (client.WithWatch, error) {
	scheme, err := NewScheme()
	if err != nil {
		return nil, fault.New(fault.Internal, "", "API scheme: %w", err)
	}
	config = rest.CopyConfig(config)
	if config.QPS == 0 {
		// client-go's default is 5 requests a second, which makes every CSI call wait. The server's own priority and
		// fairness (flow control) protects it.
		config.QPS = -1
	}
	c, err := client.NewWithWatch(config, client.Options{Scheme: scheme})
	if err != nil {
		return nil, fault.New(fault.Unavailable, "Check the kubeconfig or the pod's service account.", "Kubernetes client: %w", err)
	}
	return c, nil
}

// InCluster is Connect with the pod's service account.
func InCluster() (client.WithWatch, error) {
	config, err := rest.InClusterConfig()
	if err != nil {
		return nil, fault.New(fault.Precondition, "Run in a pod with a service account, or without --kubernetes.",
			"no access to Kubernetes: %w", err)
	}
	return Connect(config)
}
