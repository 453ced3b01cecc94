package driver

import (
	"context"
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// codeOf is the whole translation of kinds to gRPC codes (CSI specification 1.13.0, "Error Scheme" and the tables of
// each call). Sidecars and the kubelet go on trying after every code; what differs is that CANCELED, DEADLINE_EXCEEDED,
// UNAVAILABLE, RESOURCE_EXHAUSTED and ABORTED say "it may still be going on" and the others "nothing was left behind".
var codeOf = map[fault.Kind]codes.Code{
	fault.Invalid:      codes.InvalidArgument,
	fault.OutOfRange:   codes.OutOfRange,
	fault.NotFound:     codes.NotFound,
	fault.Exists:       codes.AlreadyExists,
	fault.InProgress:   codes.Aborted,
	fault.InUse:        codes.FailedPrecondition, // "Volume in use", "Volume published to another node"
	fault.Precondition: codes.FailedPrecondition,
	fault.NoSpace:      codes.ResourceExhausted, // the provisioner then lets the scheduler choose another node
	fault.Exhausted:    codes.ResourceExhausted, // "Max volumes attached"
	fault.ReadOnly:     codes.FailedPrecondition,
	fault.Damaged:      codes.DataLoss,
	fault.Unsupported:  codes.FailedPrecondition, // UNIMPLEMENTED would say that the whole call is missing
	fault.Poisoned:     codes.DataLoss,
	fault.Unavailable:  codes.Unavailable,
	fault.Timeout:      codes.DeadlineExceeded,
	fault.Denied:       codes.PermissionDenied,
	fault.Fenced:       codes.FailedPrecondition,
	fault.Internal:     codes.Internal,
}

// toStatus makes err what goes over the wire. An error that is a status already passes.
func toStatus(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	if errors.Is(err, context.Canceled) {
		return status.Error(codes.Canceled, err.Error())
	}
	code, ok := codeOf[fault.KindOf(err)]
	if !ok {
		code = codes.Internal
	}
	return status.Error(code, err.Error())
}

// toListStatus is toStatus for listings: a token that is not ours is ABORTED, so that the caller starts again at the
// beginning (CSI specification, "ListVolumes Errors").
func toListStatus(err error) error {
	if fault.KindOf(err) == fault.Invalid {
		return status.Error(codes.Aborted, err.Error())
	}
	return toStatus(err)
}

// panicked is what a caller hears of a panic.
func panicked(method string, what any) error {
	return status.Errorf(codes.Internal, "%s: panic: %v (a defect; the driver's log has the stack)", method, what)
}

// codeName is err's code, for metrics and logs.
func codeName(err error) string { return status.Code(err).String() }

func invalid(remedy, format string, args ...any) error {
	return fault.New(fault.Invalid, remedy, format, args...)
}
