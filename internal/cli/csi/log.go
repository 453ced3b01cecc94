package csi

import (
	"flag"
	"log/slog"

	"github.com/go-logr/logr"
	"github.com/spf13/pflag"
	"k8s.io/klog/v2"
)

// addLogFlags adds klog's verbosity, the only one of its flags that these programs have.
func addLogFlags(flags *pflag.FlagSet) {
	all := flag.NewFlagSet("klog", flag.ContinueOnError)
	klog.InitFlags(all)
	flags.AddGoFlag(all.Lookup("v"))
}

// logger is klog for packages that know only slog.
func logger(name string) *slog.Logger {
	return slog.New(logr.ToSlogHandler(klog.Background().WithName(name)))
}
