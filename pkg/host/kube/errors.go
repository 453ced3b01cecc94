package kube

import (
	"context"
	"errors"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// apiFault gives an error of the API server a kind.
func apiFault(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	kind, remedy := fault.Unavailable, "The Kubernetes API did not answer; the request is repeated."
	switch {
	case errors.As(err, new(*fault.Fault)):
		return fault.Wrap(err, format, args...)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		kind, remedy = fault.Timeout, ""
	case apierrors.IsNotFound(err) && strings.Contains(err.Error(), "the server could not find the requested resource"), meta.IsNoMatchError(err):
		kind, remedy = fault.Precondition, "Install the chart's custom resource definitions (kubectl apply -f charts/vmdk-csi/crds)."
	case apierrors.IsNotFound(err):
		kind, remedy = fault.NotFound, ""
	case apierrors.IsAlreadyExists(err):
		kind, remedy = fault.Exists, ""
	case apierrors.IsConflict(err):
		kind, remedy = fault.InProgress, "Somebody else changed the object; the request is repeated."
	case apierrors.IsForbidden(err), apierrors.IsUnauthorized(err):
		kind, remedy = fault.Denied, "Check the service account's role (the chart's rbac templates)."
	case apierrors.IsInvalid(err), apierrors.IsBadRequest(err):
		kind, remedy = fault.Invalid, ""
	}
	return fault.Wrap(fault.New(kind, remedy, "%w", err), format, args...)
}

// passing says that a failure may end by itself: whoever waits, waits on.
func passing(k fault.Kind) bool {
	return k == fault.InProgress || k == fault.Unavailable || k == fault.Timeout
}

// remedyMark separates message and remedy in a condition: one text for people, cut again for the caller.
const remedyMark = "\nRemedy: "

// failed is a false condition that says why.
func failed(conditionType string, generation int64, err error) metav1.Condition {
	f := fault.From(err)
	message := f.Message
	if f.Remedy != "" {
		message += remedyMark + f.Remedy
	}
	return metav1.Condition{
		Type: conditionType, Status: metav1.ConditionFalse, Reason: string(f.Kind), Message: bounded(message, 32768),
		ObservedGeneration: generation,
	}
}

// faultOf is the failure that a condition carries.
func faultOf(c *metav1.Condition) error {
	message, remedy, _ := strings.Cut(c.Message, remedyMark)
	return fault.New(fault.Kind(c.Reason), remedy, "%s", message)
}

// bounded cuts s to n bytes, the API's limit of the field it goes into.
func bounded(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "")
}
